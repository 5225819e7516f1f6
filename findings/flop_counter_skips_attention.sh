#!/usr/bin/env bash
# Version: torch 2.14.1 (Python 3.11), on a CPU
# Behaviour: torch.utils.flop_counter.FlopCounterMode has no formula for the fused attention that a CPU picks by itself
#   (`_scaled_dot_product_flash_attention_for_cpu`), forward or backward, and says nothing: attention counts as free. The
#   same call counts in full with the mathematical kernel, and on the meta device. Of a transformer block at a few
#   thousand tokens most of the work is missing, and a model's "FLOPs" depend on where they were counted.
# Output seen: attention of 2 x 4 heads, 1024 tokens of 64: fused on a CPU 0, mathematical on a CPU 6,442,450,944 forward
#   and backward, on the meta device 2,147,483,648 forward, which is right
# One would have guessed: The same count everywhere, or a warning about an operation that is not known.
# What follows: Count within `sdpa_kernel(SDPBackend.MATH)`, or on the meta device.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.14.1 numpy
venv/bin/python - <<'PY'
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted(kernel, device, backward=True):
    q, k, v = (torch.randn(2, 4, 1024, 64, device=device, requires_grad=True) for _ in range(3))
    with kernel, FlopCounterMode(display=False) as counter:
        out = F.scaled_dot_product_attention(q, k, v)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


forward = 2 * (2 * 2 * 4 * 1024 * 1024 * 64)  # two matrix products, each of two operations per multiplication
fused = counted(nullcontext(), "cpu")
mathematical = counted(sdpa_kernel(SDPBackend.MATH), "cpu")
meta = counted(nullcontext(), "meta", backward=False)
print(f"fused on a CPU {fused:,}, mathematical on a CPU {mathematical:,}, meta, forward {meta:,} of {forward:,}")
assert fused == 0 and mathematical == 3 * forward and meta == forward
PY
