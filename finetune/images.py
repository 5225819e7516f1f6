"""Pictures in and out of tensors, the same way for every training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def open_image(source: str | Path | bytes, where: str) -> Image.Image:
    """The picture in a file or in its bytes, upright and in RGB; `where` names it in errors.

    Raises:
        OSError: if it is damaged or no picture.
        ValueError: if it has more than 8 bits a channel, of which Pillow would cut off what is above 255.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except Exception as error:  # Pillow too: SyntaxError for a broken PNG, OSError for a short one, ...
        raise OSError(f"{where} is damaged or not an image ({error}): fetch or store it again") from error
    return to_rgb(image, where)


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Turns the picture as its camera was held, and makes it RGB. Raises ValueError for more than 8 bits a channel."""
    if image.mode.startswith(("I", "F")):  # Pillow would cut all above 255 off, and a depth map would turn white
        raise ValueError(f"{where} has more than 8 bits a channel: store it as an 8-bit image, scaled as you see fit")
    return ImageOps.exif_transpose(image).convert("RGB")


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The picture's centre square in RGB, `resolution` px wide."""
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize(
        (resolution, resolution), Image.BOX if side > resolution else Image.BICUBIC, box=box, reducing_gap=1.0
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as a float tensor of shape (3, height, width) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
