#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.13.0, Python 3.11)
# Behaviour: use_karras_sigmas=True means two schedules. EulerDiscrete and HeunDiscrete take sigma_max and sigma_min
#   from the inference steps that timestep_spacing chose; DPMSolverMultistep, UniPC and DEIS take the model's own and
#   ignore the spacing. With Stable Diffusion's own config (leading, offset 1) and 10 steps Euler starts at 8.39, UniPC
#   at 14.61; with trailing Euler's last sigma is 0.34 in place of 0.03.
# Output seen:
#   leading  Euler 8.3907 .. 0.0413   UniPC 14.6146 .. 0.0292
#   linspace Euler 14.6146 .. 0.0292   UniPC 14.6146 .. 0.0292
#   trailing Euler 14.6146 .. 0.3417   UniPC 14.6146 .. 0.0292
# One would have guessed: Karras et al. give one formula from (sigma_max, sigma_min, steps): the same config gives the
#   same sigmas in every scheduler, as in k-diffusion, and the spacing of timesteps has no say.
# What follows: With Karras sigmas set timestep_spacing="linspace": there both families agree. Pictures of two
#   samplers with the pipeline's own config do not compare the solvers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 torch==2.13.0
venv/bin/python - <<'PY'
import diffusers

config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, use_karras_sigmas=True)


def ends(kind, spacing):
    scheduler = getattr(diffusers, kind + "Scheduler")(**config, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    sigmas = [s for s in scheduler.sigmas.tolist() if s > 0]
    return round(sigmas[0], 4), round(sigmas[-1], 4)


seen = {(kind, spacing): ends(kind, spacing)
        for kind in ("EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
        for spacing in ("leading", "linspace", "trailing")}
for key, value in seen.items():
    print(*key, value)
whole = (14.6146, 0.0292)
for kind in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"):
    for spacing in ("leading", "linspace", "trailing"):
        assert seen[kind, spacing] == whole, "the spacing of timesteps has a say now"
for kind in ("EulerDiscrete", "HeunDiscrete"):
    assert seen[kind, "linspace"] == whole
    assert seen[kind, "leading"] == (8.3907, 0.0413), "the spacing has no say now"
    assert seen[kind, "trailing"] == (14.6146, 0.3417)
PY
