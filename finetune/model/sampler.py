"""How pictures are drawn: the scheduler, and what becomes of the numbers in the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import UniPCMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image


class DrawingError(ValueError):
    """What was drawn is no picture; the message says what to do."""


def sampling_scheduler(config: Any) -> UniPCMultistepScheduler:
    """A sampler that needs about 20 steps (Zhao et al., 2023, https://arxiv.org/abs/2302.04867), from another's config.

    It starts at the last timestep: at an earlier one, the noise that sampling starts from would pass for the beginnings
    of a picture, which then stands against the condition (Lin et al., 2023, https://arxiv.org/abs/2305.08891, 3.3).
    """
    return UniPCMultistepScheduler.from_config(config, timestep_spacing="trailing")


def as_pictures(pixels: np.ndarray) -> list[Image.Image]:
    """Pictures of a pipeline's numbers (`output_type="np"`), (B, H, W, 3) in 0..1.

    Raises:
        DrawingError: if the model's numbers overflowed. Of a NaN the library makes black, which would be scored.
    """
    if not np.isfinite(pixels).all():
        raise DrawingError(
            "The pictures have values that are not finite: train the ControlNet or the LoRA again with a lower "
            "learning rate, or lower the guidance scale, if it is a large one."
        )
    return VaeImageProcessor.numpy_to_pil(pixels)
