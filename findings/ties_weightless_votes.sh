#!/usr/bin/env bash
# Version: peft 0.21.2, torch 2.14.1 (Python 3.11)
# Behaviour: When `add_weighted_adapter` combines LoRAs by "ties_svd" (or "ties"), the weights take no part in electing the
#   signs, nor in counting by how many adapters an entry is divided. An adapter of weight 0 is voted with and divided by
#   in full, and one of weight -1 votes for the signs that it is to be subtracted from.
# Output seen (rank 4 of 16, density 1, nothing cut by the SVD): the first adapter at 1 beside the second at 0 is 0.45 of
#   the first away from it, by "svd" 0.00; weights 1 and -1 are 0.65 away from 1 and 1 with the second one negated
# One would have guessed: [1, 0] gives the first adapter, as "svd", "linear" and "cat" do; [1, -1] is [1, 1] of the first
#   adapter and the second one negated.
# What follows: Leave adapters of weight 0 out; for a negative weight negate the adapter itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 torch==2.14.1 transformers==5.23.0 accelerate==1.16.0 numpy
venv/bin/python - <<'PY'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)), config, adapter_name="first")
for name in ("second", "negated"):
    model.add_adapter(name, config)
layer = model.base_model.model[0]
layer.lora_A["negated"].load_state_dict(layer.lora_A["second"].state_dict())
layer.lora_B["negated"].weight.data = -layer.lora_B["second"].weight.data
change = layer.get_delta_weight
assert torch.equal(change("negated"), -change("second"))


def combined(adapters, weights, how="ties_svd"):
    density = {"density": 1.0} if how.startswith("ties") else {}
    model.add_weighted_adapter(adapters, weights, "sum", combination_type=how, svd_rank=16, **density)
    result = change("sum").detach().clone()
    model.delete_adapter("sum")
    return result


def away(result, wanted):
    return float((result - wanted).norm() / wanted.norm())


first = change("first").detach()
for how in ("svd", "ties_svd"):
    alone = away(combined(["first"], [1.0], how), first)
    with_none = away(combined(["first", "second"], [1.0, 0.0], how), first)
    print(f"{how:8} the first alone: {alone:.2f} away from it; the second beside it with weight 0: {with_none:.2f}")
    assert alone < 1e-3 and (with_none < 1e-3 if how == "svd" else with_none > 0.3)
minus = combined(["first", "second"], [1.0, -1.0])
plus = combined(["first", "negated"], [1.0, 1.0])
print(f"weights 1 and -1: {away(minus, plus):.2f} away from 1 and 1 with the second negated")
assert away(combined(["first", "second"], [1.0, -1.0], "svd"), combined(["first", "negated"], [1.0, 1.0], "svd")) < 1e-3
assert away(minus, plus) > 0.3
PY
