#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: A fresh OFT adapter on a 3x3 convolution changes the output before any training: it unfolds the input
#   into overlapping patches, rotates them (here by nothing) and folds them back, where each pixel is added as often as
#   it lies in a patch, and the position of the patch and the position in it change places: the convolution gets a
#   scrambled picture. Merged, the same adapter is the identity that it says. On 1x1 convolutions it is right.
# Output seen: greatest difference to the base's output, which has a standard deviation of 0.55
#   1x1: unmerged 0, merged 0;  3x3: unmerged 4.4, merged 0, unmerged to the base on a picture so scrambled 0
# One would have guessed: An adapter with init_weights=True starts as the identity, merged or not: the base model
#   draws as before.
# What follows: OFT for a UNet: linear layers only, or look at the output right after wrapping; a training on 3x3
#   convolutions trains another network than the merged one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import copy

import torch
import torch.nn.functional as F
from peft import OFTConfig, get_peft_model


def differences(kernel):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Conv2d(8, 8, kernel, padding=kernel // 2))
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        expected = base(x)
        model = get_peft_model(copy.deepcopy(base), OFTConfig(oft_block_size=4, target_modules=["0"])).eval()
        unmerged = model(x)
        model.merge_adapter()
        merged = model(x)
        patches = F.unfold(x, kernel).view(1, 8, kernel**2, -1)
        scrambled = base(F.fold(patches.transpose(2, 3).reshape(1, 8 * kernel**2, -1), (6, 6), kernel))
    found = [(a - b).abs().max().item() for a, b in ((unmerged, expected), (merged, expected), (unmerged, scrambled))]
    print(f"{kernel}x{kernel}: unmerged - base {found[0]:.2g}, merged - base {found[1]:.2g},",
          f"unmerged - base on a scrambled picture {found[2]:.2g}, standard deviation {expected.std():.2g}")
    return found


unmerged, merged, _ = differences(1)
assert unmerged < 1e-5 and merged < 1e-5
unmerged, merged, scrambled = differences(3)
assert unmerged > 0.5, "a fresh OFT on a 3x3 convolution is the identity now"
assert merged < 1e-5 and scrambled < 1e-5
PY
