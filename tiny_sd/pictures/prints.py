"""Everyday things as block prints: what the embedded base knows of art.

A model that has seen only flat drawings has nothing to redraw a thing with when a LoRA asks for outlines, hatching and
a carved ground. These prints teach it such marks in all colours; the inks and cuts of any one artist are left to LoRA.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from tiny_sd.pictures.icons import icon

SIDE = 256  # px at which a print is cut
STROKES = (10.0, 24.0)  # px along a side from one stroke of a hatching to the next, from finest to coarsest


def above(field: np.ndarray, threshold: float, soft: float = 0.1) -> np.ndarray:
    """1 where the field exceeds the threshold, 0 elsewhere, with a soft rim."""
    return np.clip((field - threshold) / soft + 0.5, 0, 1)


@lru_cache(maxsize=None)
def turns_around_the_middle() -> np.ndarray:
    """In which direction from the middle each pixel lies: (SIDE, SIDE), in radians."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    return np.arctan2(y, x)


def rays(rng: np.random.Generator) -> np.ndarray:
    """How much ink lies on each pixel of a ground of carved rays, (SIDE, SIDE) in 0..1; a margin stays free."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    turns = turns_around_the_middle() / (2 * np.pi) * rng.integers(18, 31) + rng.random()
    ink = above(np.abs(turns % 1 - 0.5) * 2, 0.55, 0.15)
    return ink * (np.maximum(abs(x), abs(y)) < SIDE / 2 - 8)


@lru_cache(maxsize=None)
def blurring(sigma: float) -> np.ndarray:
    """As a matrix (SIDE, SIDE): the weights of all pixels of a row in each pixel of the blurred row."""
    return gaussian_filter1d(np.eye(SIDE), sigma, axis=0)


def wide_blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """`gaussian_filter` for a large sigma, where to multiply with a matrix takes a third of its time."""
    return blurring(sigma) @ field @ blurring(sigma).T


def hatching(width: float, rng: np.random.Generator) -> np.ndarray:
    """Parallel strokes to one of two sides; `width` is the share of ink."""
    y, x = np.mgrid[:SIDE, :SIDE]
    phase = (x + rng.choice([-1, 1]) * y) / rng.uniform(*STROKES) + rng.random()
    return above(np.abs(phase % 1 - 0.5) * 2, 1 - width, 0.2)


def block_print(
    style: str,
    name: str,
    inks: tuple[tuple[int, int, int], ...],
    paper: tuple[int, int, int],
    with_rays: bool,
    rng: np.random.Generator,
) -> Image.Image:
    """A drawing of the icon sets as a print: RGB, SIDE px, the thing in the middle, three quarters of it large.

    The first of the three `inks` draws outlines, hatching and what is dark; the others fill what is of middle tone and
    what is light, or leave it as paper.
    """
    drawing = icon(style, name, SIDE)
    drawing = drawing.crop(drawing.getchannel("A").getbbox())
    scale = 0.75 * SIDE / max(drawing.size)
    drawing = drawing.resize([round(side * scale) for side in drawing.size], Image.BICUBIC)
    rgba = Image.new("RGBA", (SIDE, SIDE))
    rgba.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    pixels = np.asarray(rgba) / 255
    mask = np.ascontiguousarray(pixels[..., 3])
    inside = mask > 0.5

    light = gaussian_filter(pixels[..., :3] @ (0.3, 0.59, 0.11) * mask + (1 - mask) * 0.5, 1)
    sorted_light = np.sort(light[inside])
    low, high = np.quantile(sorted_light, (0.02, 0.98))
    rank = np.searchsorted(sorted_light, light) / len(sorted_light)
    tone = 0.6 * np.clip((light - low) / max(high - low, 0.05), 0, 1) + 0.4 * rank

    near = gaussian_filter(mask, 3)
    body, outline = above(near, 0.6), above(near, 0.15)
    steps = sum(np.hypot(*np.gradient(gaussian_filter(pixels[..., i] * mask, 1.2))) for i in range(3))
    lines = above(gaussian_filter(np.clip(steps * 5, 0, 1), 1), 0.35, 0.2) * body
    dark = above(0.22 - tone, 0, 0.05) * body
    shade = wide_blur(np.roll(mask, (-20, -20), (0, 1)), 14)  # the light comes from above, on the left
    strokes = hatching(0.4, rng) * above(0.75 - np.minimum(shade, tone + 0.35), 0) * body

    canvas = np.full((3, SIDE, SIDE), np.reshape(paper, (3, 1, 1)), float)
    layers = [
        (rays(rng) if with_rays else np.zeros_like(mask), inks[0]),
        (above(wide_blur(mask, 7), 0.04), paper),
        (above(0.6 - tone, 0, 0.05) * body, inks[1]),
        (above(tone, 0.6, 0.05) * above(0.85 - tone, 0, 0.05) * body, inks[2]),
        (np.maximum.reduce([strokes, lines, dark, outline - body]), inks[0]),
    ]
    for amount, color in layers:
        canvas += amount * (np.reshape(color, (3, 1, 1)) - canvas)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(canvas.round().astype(np.uint8), 0, -1)))
