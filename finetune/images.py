"""Pictures in and out of tensors, the same way for every training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The picture's centre square in RGB, `resolution` px wide."""
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.BOX if side > resolution else Image.BICUBIC, box=box)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as a float tensor of shape (3, height, width) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
