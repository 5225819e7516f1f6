#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.13.0, Python 3.11)
# Behaviour: EMAModel(decay=0.9999, use_ema_warmup=False), which is its default, warms up all the same: the decay of
#   step s is s / (s + 9) as long as that is less. 0.999 holds from step 8,991 on, 0.9999 from step 89,991 on.
#   use_ema_warmup chooses between two curves, not between one and none. In a run of 5,000 steps the decays 0.999,
#   0.9999 and 0.99999 give the same average to the bit, of weights that are some 500 steps old in the mean.
# Output seen:
#   5,000 steps, decay asked for 0.999, 0.9999, 0.99999: last decay 0.998203, one average
#   first step at its decay: 0.99 at 891, 0.999 at 8991, 0.9999 at 89991
#   min_decay=0.9999: from step 2 on, another average
# One would have guessed: With use_ema_warmup=False each step uses the decay that was asked for.
# What follows: In a run of a few thousand steps decay is no knob: a sweep over it compares a thing with itself. Give
#   min_decay the same number as decay for the plain average, and look at cur_decay_value.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from diffusers.training_utils import EMAModel


def average(steps=5000, **options):
    """The average of weights that do a random walk, and the decay of the last step."""
    random = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.zeros(100))
    ema = EMAModel([weights], use_ema_warmup=False, **options)
    for _ in range(steps):
        weights.data += torch.randn(100, generator=random)
        ema.step([weights])
    return ema.shadow_params[0], ema.cur_decay_value


def first_step(decay):
    """The first step that uses the decay that was asked for."""
    ema = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=decay, use_ema_warmup=False)
    return next(step for step in range(1, 200_000) if ema.get_decay(step) == decay)


seen = {decay: average(decay=decay) for decay in (0.999, 0.9999, 0.99999)}
for decay, (_, used) in seen.items():
    print(f"decay {decay}: the last of 5,000 steps used {used:.6f}")
reference = seen[0.999][0]
assert all(torch.equal(value, reference) and round(used, 6) == 0.998203 for value, used in seen.values()), \
    "the decay counts now"
reached = {decay: first_step(decay) for decay in (0.99, 0.999, 0.9999)}
print("first step at the decay asked for:", reached)
assert reached == {0.99: 891, 0.999: 8991, 0.9999: 89991}
plain, used = average(decay=0.9999, min_decay=0.9999)
print("with min_decay the last step used", used, "difference of the average", (plain - reference).abs().max().item())
assert used == 0.9999 and not torch.allclose(plain, reference, atol=1)
warmed = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999, use_ema_warmup=True).get_decay(5000)
print(f"use_ema_warmup=True uses {warmed:.6f} there")
assert warmed < 0.998203
PY
