#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: Two active OFT adapters applied as they run and merged are two different models: forward rotates the
#   input by the first and then by the second, merging multiplies the weight in the opposite order. The merged [a, b]
#   equals the running [b, a]. LoRA, LoHa and LoKr add up, so their order is of no matter.
# Output seen: running [a, b] - merged [a, b] 1.23;  running [b, a] - merged [a, b] 4.2e-07
# One would have guessed: merge_adapter changes nothing but rounding, with two adapters as with one.
# What follows: Merge two rotations one after the other from a reversed list, or compare an output before and after
#   merging.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from peft import OFTConfig, get_peft_model

torch.manual_seed(0)
config = OFTConfig(target_modules=["0"], init_weights=False)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 48)), config, "a")
model.add_adapter("b", config)
model.eval()
x = torch.randn(4, 32)


def output(*names, merged=False):
    model.base_model.set_adapter(list(names))
    if merged:
        model.merge_adapter()
    with torch.no_grad():
        found = model(x)
    if merged:
        model.unmerge_adapter()
    return found


def gap(p, q):
    return (p - q).abs().max().item()


for name in "ab":
    assert gap(output(name), output(name, merged=True)) < 1e-4
forward, backward = output("a", "b"), output("b", "a")
merged = output("a", "b", merged=True)
print("running [a, b] - merged [a, b]", gap(forward, merged), "running [b, a] - merged [a, b]", gap(backward, merged))
assert gap(forward, merged) > 0.1, "merging keeps the order now"
assert gap(backward, merged) < 1e-4
PY
