#!/usr/bin/env bash
# Version: prodigyopt 1.1.2 (torch 2.13.0, Python 3.11)
# Behaviour: On bfloat16 weights Prodigy never starts: its first steps of 1e-6 round away, so the weights equal their
#   start, and the distance from the start is what its rate grows by. d stays at 1e-6 and the loss where it was for
#   ever, without a word. The same problem in float32 is solved in 300 steps.
# Output seen:
#   float32  d 0.39 loss 2.01 -> 9.9e-14
#   bfloat16 d 1e-06 loss 2.01 -> 2.01, weights that changed: 0.1 %
# One would have guessed: A learning-rate-free optimiser finds its rate in bfloat16 too, a little less exactly, as
#   Adam trains there.
# What follows: Prodigy wants float32 weights (bfloat16 by autocast only); on a LoRA in bfloat16 only B, which starts
#   at zero, can move. A higher d0 helps: 1e-2 here.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet prodigyopt==1.1.2 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from prodigyopt import Prodigy


def train(dtype, **options):
    torch.manual_seed(0)
    start, target = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    weight = torch.nn.Parameter(start.clone())
    optimizer = Prodigy([weight], lr=1.0, **options)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((weight - target).float() ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = (weight != start).float().mean().item()
    print(dtype, options, "d", optimizer.param_groups[0]["d"], "loss", losses[0], "->", losses[-1], "moved", moved)
    return optimizer.param_groups[0]["d"], losses[-1] / losses[0], moved


d, share, _ = train(torch.float32)
assert d > 0.1 and share < 1e-6
d, share, moved = train(torch.bfloat16)
assert d == 1e-6 and share > 0.99 and moved < 0.01, "Prodigy starts in bfloat16 now"
_, share, _ = train(torch.bfloat16, d0=1e-2)
assert share < 0.1
PY
