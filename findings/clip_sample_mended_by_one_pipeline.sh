#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.13.0, Python 3.11)
# Behaviour: A DDIM or DDPM scheduler made from a PNDM config (which has no clip_sample, and saves none) cuts its guess of
#   the clean latents to -1..1. StableDiffusionPipeline(...) mends that, with a deprecation warning, in the scheduler that
#   it is constructed with, and in no other way: assigned to pipeline.scheduler, the same scheduler cuts, without a word,
#   and StableDiffusionControlNetPipeline leaves it cutting even when it is constructed with it.
# Output seen: clip_sample of the pipeline's scheduler, and the largest of the latents drawn in 10 steps from one noise
#   DDIMScheduler: constructed False, assigned True, ControlNet's pipeline constructed True
#   DDPMScheduler: constructed False, assigned True, ControlNet's pipeline constructed True
#   largest latent by DDIM: constructed 24.8, assigned 1.0
# One would have guessed: A pipeline draws with a scheduler the same however it got it, and a ControlNet's as its base's.
# What follows: A model whose scheduler_config.json does not say "clip_sample": false draws well by itself and mush with
#   a ControlNet, or after the usual swap of schedulers. Write the field into the file, though PNDM does not know it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import warnings

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

warnings.simplefilter("ignore")
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
parts = dict(
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=8), unet=unet, text_encoder=None, tokenizer=None,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
controlnet = ControlNetModel.from_unet(unet)
text = torch.randn(1, 3, 16)
config = PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
).config
assert "clip_sample" not in config


def largest(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = pipeline(
        prompt_embeds=text, negative_prompt_embeds=torch.zeros_like(text), latents=start, num_inference_steps=10,
        output_type="latent",
    ).images
    return drawn.abs().max().item()


for kind in (DDIMScheduler, DDPMScheduler):
    constructed = StableDiffusionPipeline(scheduler=kind.from_config(config), **parts)
    assigned = StableDiffusionPipeline(scheduler=PNDMScheduler.from_config(config), **parts)
    assigned.scheduler = kind.from_config(config)
    steered = StableDiffusionControlNetPipeline(scheduler=kind.from_config(config), controlnet=controlnet, **parts)
    said = [one.scheduler.config.clip_sample for one in (constructed, assigned, steered)]
    print(f"{kind.__name__}: constructed {said[0]}, assigned {said[1]}, ControlNet's pipeline constructed {said[2]}")
    assert said == [False, True, True], "the pipelines agree now"
    if kind is DDIMScheduler:
        sizes = largest(constructed), largest(assigned)
        print(f"largest latent by DDIM: constructed {sizes[0]:.1f}, assigned {sizes[1]:.1f}")
        assert sizes[0] > 2 and sizes[1] <= 1.01
PY
