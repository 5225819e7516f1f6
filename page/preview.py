"""What a picture will be, while it is still latents: a straight line through latents and colours, fitted once a base.

Why not the autoencoder: on the embedded base a whole decoding takes as long as a step of drawing, on Stable Diffusion
several steps. The latents' channels are nearly linear in the colours of the picture made small, which is enough to see
what grows where; one small matrix product costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from fill50k import RenderedFill50K
from finetune.data.images import to_tensor

PICTURES = 24  # half of them discs, half of them clouds of all colours
SIDE = 128  # px: so many colours of 8 x 8 px each are plenty for a matrix of 17 x 3


class LinearPreview:
    """Fits on an autoencoder's own encodings of pictures that are made here; needs no file."""

    def __init__(self, vae: AutoencoderKL) -> None:
        pictures = torch.cat([discs(PICTURES // 2), clouds(PICTURES // 2)])
        with torch.no_grad():
            place = {"device": vae.device, "dtype": vae.dtype}
            latents = torch.cat([vae.encode(part.to(**place) * 2 - 1).latent_dist.mean for part in pictures.split(4)])
        latents = (latents.float() * vae.config.scaling_factor).cpu()
        colors = F.adaptive_avg_pool2d(pictures, latents.shape[-2:])
        known = with_ones(latents).flatten(0, 2)
        self.matrix = torch.linalg.lstsq(known, colors.movedim(1, 3).flatten(0, 2), driver="gelsd").solution
        self.error = float((known @ self.matrix - colors.movedim(1, 3).flatten(0, 2)).abs().mean())

    def __call__(self, latents: torch.Tensor) -> Image.Image:
        """The first of some latents (batch, channels, height, width) as a small picture, a px for each of theirs."""
        colors = with_ones(latents[:1].detach().float().cpu())[0] @ self.matrix
        return Image.fromarray((colors.clamp(0, 1).nan_to_num() * 255).round().byte().numpy())


def with_ones(latents: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, height, width, channels + 1), for a constant."""
    latents = latents.movedim(1, 3)
    return torch.cat([latents, torch.ones_like(latents[..., :1])], dim=-1)


def discs(number: int) -> torch.Tensor:
    """Pictures of Task 1's kind, (number, 3, height, width) in 0..1."""
    data = RenderedFill50K("train", number)
    return torch.stack([to_tensor(data.render(i, SIDE).image) for i in range(number)])


def clouds(number: int) -> torch.Tensor:
    """Smooth pictures of all colours, always the same."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((number, 3, 5, 5), dtype=np.float32))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True).clamp(0, 1)


def guess_of(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """What the model takes the finished latents to be, as its scheduler keeps it; noise and all where it does not."""
    outputs = getattr(pipeline.scheduler, "model_outputs", None)
    clean = getattr(pipeline.scheduler.config, "predict_x0", False)
    return outputs[-1] if clean and outputs and outputs[-1] is not None else latents
