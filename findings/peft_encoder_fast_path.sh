#!/usr/bin/env bash
# Version: peft 0.21.2 with torch 2.13.0 (Python 3.11)
# Behaviour: A LoRA on linear1 and linear2 of torch.nn.TransformerEncoderLayer trains, and is gone in eval mode: the
#   output is the base model's to the bit. In eval the layer's fused path reads linear1.weight itself in place of
#   calling the module, and the wrapper hands out the base weight. It happens with gradients on too, since the frozen
#   weights ask for none. Merging or torch.backends.mha.set_fastpath_enabled(False) brings the adapter back.
# Output seen: train - eval 1.29, eval - base 0.0, with the fused path off train - eval 0.0, merged 6.0e-07
# One would have guessed: With dropout 0 train and eval are equal; whoever validates in eval sees the adapter that was
#   trained.
# What follows: In a condition encoder made of torch's own layers turn the fused path off before validating, or merge.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import warnings

import torch
from peft import LoraConfig, get_peft_model

warnings.simplefilter("ignore")
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
encoder = torch.nn.TransformerEncoder(layer, 2)
config = LoraConfig(r=4, target_modules=["linear1", "linear2"], init_lora_weights=False)
model = get_peft_model(encoder, config)
x = torch.randn(2, 5, 16)
trained = model.train()(x)
evaluated = model.eval()(x)
with model.disable_adapter():
    base = model(x)
torch.backends.mha.set_fastpath_enabled(False)
slow = model(x)
torch.backends.mha.set_fastpath_enabled(True)
model.merge_adapter()
merged = model(x)


def gap(a, b):
    return (a - b).abs().max().item()


print("train - eval", gap(trained, evaluated), "eval - base", gap(evaluated, base))
print("fused path off: train - eval", gap(trained, slow), "merged: train - eval", gap(trained, merged))
assert gap(trained, evaluated) > 0.1, "the adapter works in eval now"
assert torch.equal(evaluated, base)
assert gap(trained, slow) < 1e-5 and gap(trained, merged) < 1e-4
PY
