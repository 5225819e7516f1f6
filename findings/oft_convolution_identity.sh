#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: A fresh OFT adapter on a 3x3 convolution changes the output before any training: it unfolds the input
#   into overlapping patches, rotates them (here by nothing) and folds them back, which adds each pixel as often as it
#   lies in a patch, nine times. Merged, the same adapter is the identity that it says. On 1x1 convolutions and linear
#   layers it is right.
# Output seen: 1x1: unmerged 0.0, merged 0.0    3x3: unmerged 4.3, merged 0.0 (outputs of about 1)
# One would have guessed: An adapter with init_weights=True starts as the identity, merged or not: the base model
#   draws as before.
# What follows: OFT for a UNet: linear layers only, or look at the output right after wrapping; a training on 3x3
#   convolutions trains another network than the merged one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import copy

import torch
from peft import OFTConfig, get_peft_model


def differences(kernel):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Conv2d(8, 8, kernel, padding=kernel // 2))
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        expected = base(x)
        model = get_peft_model(copy.deepcopy(base), OFTConfig(target_modules=["0"])).eval()
        unmerged = model(x)
        model.merge_adapter()
        found = [(y - expected).abs().max().item() for y in (unmerged, model(x))]
    print(f"{kernel}x{kernel}: unmerged {found[0]:.2g}, merged {found[1]:.2g}, size of the outputs {expected.std():.2g}")
    return found


unmerged, merged = differences(1)
assert unmerged < 1e-5 and merged < 1e-5
unmerged, merged = differences(3)
assert unmerged > 0.5, "a fresh OFT on a 3x3 convolution is the identity now"
assert merged < 1e-5
PY
