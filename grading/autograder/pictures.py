"""Simple measures of a picture: does it show anything, is it noise, how much does another differ from it?

They find what is certainly wrong. Whether a picture has the style or the subject that was trained is for the teacher to
see.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# One latent of Stable Diffusion decodes to so many pixels: noise in the latents has no structure beyond that.
LATENT = 8
# Of a picture's contrast.
HARDLY = 0.05


def read_picture(data: bytes) -> np.ndarray:
    """The pixels of a PNG file, (height, width, 3), float in 0..255."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


def contrast(pixels: np.ndarray) -> float:
    """The standard deviation of the pixels from the picture's mean colour, 0 for one flat colour."""
    return float(np.sqrt(((pixels - pixels.mean((0, 1))) ** 2).mean()))


def smoothness(pixels: np.ndarray) -> float:
    """The correlation of pixels that are one latent apart, across and down: 1 where they are the same, 0 in noise."""
    deviation = pixels - pixels.mean((0, 1))
    variance = (deviation**2).mean()
    if variance == 0:
        return 1.0
    across = (deviation[:, LATENT:] * deviation[:, :-LATENT]).mean()
    down = (deviation[LATENT:] * deviation[:-LATENT]).mean()
    return float((across + down) / 2 / variance)


def calm(pixels: np.ndarray) -> float:
    """The share of pixels that hardly differ from the next ones, by the picture's contrast: little in noise."""
    across = np.abs(np.diff(pixels, axis=1)).mean(-1)[:-1]
    down = np.abs(np.diff(pixels, axis=0)).mean(-1)[:, :-1]
    return float((np.maximum(across, down) <= HARDLY * contrast(pixels)).mean())


def change(pixels: np.ndarray, other: np.ndarray) -> float:
    """The mean absolute difference of the pixels, 0..255."""
    return float(np.abs(pixels - other).mean())
