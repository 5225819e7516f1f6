#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.13.0, Python 3.11)
# Behaviour: FlowMatchEulerDiscreteScheduler with shift 3 (Stable Diffusion 3) shifts its smallest sigma twice:
#   set_timesteps(n) starts from the end that the constructor shifted already and shifts again. set_timesteps(1000) is
#   not the schedule of training (its last sigma is 0.0089, not 0.0030), and set_timesteps(28) ends ... 0.1109, 0.0089,
#   0: a last step of under 1 % of the way, where the schedule from explicit sigmas 1, 27/28 ... 1/28 ends 0.1875, 0.1,
#   0.
# Output seen:
#   training 0.0030  set_timesteps(1000) 0.0089
#   set_timesteps(28) [0.1998, 0.1109, 0.0089, 0.0]  set_timesteps(sigmas=1..1/28) [0.2647, 0.1875, 0.1, 0.0]
# One would have guessed: set_timesteps(num_train_timesteps) returns the training schedule, as it does without a shift,
#   and 28 steps are 28 steps evenly spaced before the one shift.
# What follows: Pass sigmas explicitly to compare with a paper or another program; asked for by number, the last step
#   does next to nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
training = scheduler.sigmas.clone()
scheduler.set_timesteps(1000)
same_number = scheduler.sigmas[:-1].clone()
scheduler.set_timesteps(28)
by_number = scheduler.sigmas[-4:].clone()
scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 28, 28))
by_sigmas = scheduler.sigmas[-4:].clone()
print("training", training[-1].item(), "set_timesteps(1000)", same_number[-1].item())
print("28", by_number.tolist(), "explicit", by_sigmas.tolist())


def shift(s):
    return 3 * s / (1 + 2 * s)


once = shift(1 / 1000)
assert abs(training[-1].item() - once) < 1e-6
assert abs(same_number[-1].item() - shift(once)) < 1e-6, "the end is no longer shifted twice"
assert abs(by_number[-2].item() - shift(once)) < 1e-6
assert torch.allclose(by_sigmas, torch.tensor([shift(3 / 28), shift(2 / 28), shift(1 / 28), 0.0]), atol=1e-6)

# without a shift there is nothing to see
plain = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
before = plain.sigmas.clone()
plain.set_timesteps(1000)
assert torch.allclose(before, plain.sigmas[:-1], atol=1e-6)
PY
