#!/usr/bin/env bash
# Version: torch 2.13.0 (Python 3.11), CPU autocast to bfloat16; accelerate 1.15.0's autocast is the same context
# Behaviour: Within one autocast context a weight that is trained is cast to bfloat16 once and kept; one that is frozen
#   (requires_grad False) is cast again at every call of its layer. So the base of a LoRA or ControlNet training, most of
#   the weights, is converted in full at each forward pass, and twice where it runs for prompt and empty prompt apart.
# Output seen: casts of the weight in 8 calls: trained 1, frozen 8
# One would have guessed: What cannot change is what is safest to keep: frozen 1.
# What follows: Cast the frozen models to bfloat16 by `.to` before training, and leave autocast to the trained ones.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 accelerate==1.15.0
venv/bin/python - <<'PY'
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts conversions of tensors of the weight's shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.number = shape, 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and arguments[0].shape == self.shape:
            self.number += 1
        return function(*arguments, **(kwargs or {}))


accelerator = Accelerator(cpu=True, mixed_precision="bf16")


def casts(trained):
    layer = torch.nn.Linear(48, 32, bias=False).requires_grad_(trained)
    x = torch.randn(4, 48)
    with accelerator.autocast(), Casts(layer.weight.shape) as counted:
        for _ in range(8):
            assert layer(x).dtype == torch.bfloat16
    return counted.number


found = casts(trained=True), casts(trained=False)
print("casts of the weight in 8 calls: trained %d, frozen %d" % found)
assert found == (1, 8), found
PY
