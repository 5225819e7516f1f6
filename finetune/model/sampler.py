"""How pictures are drawn: the scheduler, and what becomes of the numbers in the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.overrides import TorchFunctionMode

from ..devices import pick_device, solves


class DrawingError(ValueError):
    """What was drawn is no picture; the message says what to do."""


def sampling_scheduler(config: Any) -> UniPCMultistepScheduler:
    """A sampler that needs about 20 steps (Zhao et al., 2023, https://arxiv.org/abs/2302.04867), from another's config.

    It starts at the last timestep: at an earlier one, the noise that sampling starts from would pass for the beginnings
    of a picture, which then stands against the condition (Lin et al., 2023, https://arxiv.org/abs/2305.08891, 3.3).
    """
    kind = UniPCMultistepScheduler if solves(pick_device()) else SolvesOnCPU
    return kind.from_config(config, timestep_spacing="trailing")


class SolvesOnCPU(UniPCMultistepScheduler):
    """Asks no device for `torch.linalg.solve`: what each step solves are two equations."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        with _SolveOnCPU():
            return super().step(*args, **kwargs)


class _SolveOnCPU(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.linalg.solve:
            return function(*args, **(kwargs or {}))
        return function(*(matrix.cpu() for matrix in args)).to(args[0].device)


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
