#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.13.0, Python 3.11)
# Behaviour: DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler and
#   DEISMultistepScheduler, fresh or just loaded, add the noise backwards: add_noise at timestep 0 gives nearly pure
#   noise, at timestep 999 nearly the clean sample. Until set_timesteps is called their timesteps fall and their sigmas
#   rise. After set_timesteps(20) the order is right, but every timestep that is not one of the 20 gets the noise of the
#   last step, without a word.
# Output seen:
#   share of noise at timesteps 0, 333, 500, 999
#   DDPM                [0.0292, 0.6819, 0.8507, 0.9977]
#   DPMSolverMultistep  [0.9977, 0.946, 0.8499, 0.0292], after set_timesteps(20) [0.2201, 0.2201, 0.8507, 0.9977]
# One would have guessed: These schedulers share DDPM's alphas, so their add_noise(sample, noise, t) equals DDPM's at
#   every t, before and after set_timesteps.
# What follows: Train with DDPMScheduler.from_config(pipeline.scheduler.config), never with the scheduler that a
#   pipeline draws with.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 torch==2.13.0
venv/bin/python - <<'PY'
import diffusers
import torch

config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
t = torch.tensor([0, 333, 500, 999])
zeros, ones = torch.zeros(4, 1, 1, 1), torch.ones(4, 1, 1, 1)


def share_of_noise(scheduler):
    return scheduler.add_noise(zeros, ones, t).flatten()


reference = share_of_noise(diffusers.DDPMScheduler(**config))
print("DDPMScheduler", [round(x, 4) for x in reference.tolist()])
assert reference.tolist() == sorted(reference.tolist())
for kind in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
    scheduler = getattr(diffusers, kind + "Scheduler")(**config)
    fresh = share_of_noise(scheduler)
    scheduler.set_timesteps(20)
    after = share_of_noise(scheduler)
    print(kind, "fresh, after set_timesteps(20):", *([round(x, 4) for x in y.tolist()] for y in (fresh, after)))
    assert fresh.tolist() == sorted(fresh.tolist(), reverse=True), "the noise no longer falls with t"
    assert torch.allclose(fresh[[0, 3]], reference[[3, 0]], atol=1e-3)
    assert torch.allclose(after[3], reference[3], atol=1e-3)
    assert after[0] == after[1] < reference[1], "timesteps between the steps no longer get the last step's noise"
PY
