#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: add_weighted_adapter([a, b], [0.5, 0.5], combination_type="linear") of an adapter with its own copy gives
#   an adapter twice as strong, not the same one: "linear" mixes A and B each with the root of the weight, so that the
#   product holds the cross terms A1 B2. "dare_linear" and "magnitude_prune" do the same, "ties" gives half; only "cat"
#   and "svd" give the weighted sum.
# Output seen: linear 2.0  dare_linear 2.0  magnitude_prune 2.0  ties 0.5  cat 1.0  svd 1.0
# One would have guessed: A linear combination with weights 0.5 and 0.5 is the mean of the two updates, and the mean
#   of a thing with itself is the thing.
# What follows: Average LoRAs with "cat" (exact, the rank adds up) or "svd"; two LoRAs that resemble each other, such
#   as two checkpoints of one run, come out of "linear" nearly twice as strong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import warnings

import torch
from peft import LoraConfig, get_peft_model

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config, "first")
model.add_adapter("second", config)
copy = {k.replace(".first.", ".second."): v for k, v in model.state_dict().items() if ".first." in k}
assert len(copy) == 2
model.load_state_dict(copy, strict=False)
layer = model.base_model.model[0]
one = layer.get_delta_weight("first")
assert torch.equal(one, layer.get_delta_weight("second"))
expected = {"linear": 2, "dare_linear": 2, "magnitude_prune": 2, "ties": 0.5, "cat": 1, "svd": 1}
for kind, factor in expected.items():
    pruned = {} if kind in ("linear", "cat", "svd") else {"density": 1.0}
    model.add_weighted_adapter(["first", "second"], [0.5, 0.5], kind, combination_type=kind, **pruned)
    mean = layer.get_delta_weight(kind)
    print(kind, round((mean.norm() / one.norm()).item(), 4))
    assert torch.allclose(mean, factor * one, atol=1e-5), f"{kind} no longer gives {factor} of the adapter"
PY
