"""The pipeline with our UNet in it, ready to draw."""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.devices import drawing_dtype, pick_device
from finetune.model.base import load_part
from finetune.model.sampler import sampling_scheduler


def load_pipeline(
    base: str, controlnet: str | Path | ControlNetModel, device: torch.device | None = None
) -> StableDiffusionControlNetPipeline:
    """Our pipeline with our UNet: half precision on a GPU, float32 elsewhere.

    Raises:
        BaseModelError: if the base model or the ControlNet cannot be loaded.
    """
    device = device or pick_device()
    # No small steps of a training can be lost here, and half precision takes half of the memory.
    dtype = drawing_dtype(device)
    unet = load_part(UNet2DConditionModel, base, "unet", dtype)
    if not isinstance(controlnet, ControlNetModel):
        controlnet = ControlNetModel.from_pretrained(controlnet, dtype=dtype)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        base, unet=unet, controlnet=controlnet, dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler.config)
    return pipeline.to(device)
