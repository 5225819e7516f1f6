"""LoRAs that do change something, and pictures drawn with them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from lora.model import LoraDenoiser
from processes import BASE


def random_lora(
    rank: int = 3, alpha: float = 2.0, with_text_encoder: bool = True, layers: str = "attention", base: str = BASE
) -> LoraDenoiser:
    """A LoRA that does change something, if not asked otherwise on the embedded base: B is not zero."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", torch_dtype=torch.float32)
    denoiser = LoraDenoiser(unet, text_encoder if with_text_encoder else None, rank, alpha, layers)
    torch.manual_seed(0)
    for parameter in denoiser.trainable_parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape)
    return denoiser.eval()


def draw(pipeline: StableDiffusionPipeline, **kwargs) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "gold circle", num_inference_steps=2, generator=generator, output_type="np", height=64, width=64, **kwargs
    ).images
