#!/usr/bin/env bash
# Version: bitsandbytes 0.50.2 (torch 2.13.0, Python 3.11, CPU)
# Behaviour: AdamW8bit keeps 32-bit state for every tensor below 4,096 elements, and a LoRA is made of those: at rank
#   4 both matrices of a 320-wide layer (1,280 elements) stay in float32, so on the narrow blocks of Stable Diffusion's
#   UNet the 8-bit optimiser saves not a byte. From 4,096 elements on the state is uint8.
# Output seen: (4, 320) float32  (320, 4) float32  (4, 640) float32  (4, 768) float32  (4, 1280) uint8  (16, 320)
#   uint8
# One would have guessed: An 8-bit optimiser holds 8-bit state: a quarter of the memory whatever the shape.
# What follows: For a LoRA of small rank it brings neither memory nor the rounding that one fears; min_8bit_size=1
#   turns it on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import bitsandbytes
import torch

shapes = [(4, 320), (320, 4), (4, 640), (4, 768), (8, 511), (8, 512), (4, 1280), (16, 320)]


def kinds(**options):
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3, **options)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return [optimizer.state[p]["state1"].dtype for p in parameters]


plain = kinds()
for shape, kind in zip(shapes, plain):
    print(shape, kind)
assert plain == [torch.float32 if a * b < 4096 else torch.uint8 for a, b in shapes], "small tensors are quantised now"
assert set(kinds(min_8bit_size=1)) == {torch.uint8}
PY
