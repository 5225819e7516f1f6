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
MARGIN = 8  # px along the sides that rays leave free
REACH = 16  # px around a thing within which its outline ends
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
    turns = turns_around_the_middle()[MARGIN:-MARGIN, MARGIN:-MARGIN] / (2 * np.pi)
    turns = turns * rng.integers(18, 31) + rng.random()
    return np.pad(above(np.abs(turns % 1 - 0.5) * 2, 0.55, 0.15), MARGIN)


@lru_cache(maxsize=None)
def blurring(sigma: float) -> np.ndarray:
    """As a matrix (SIDE, SIDE): the weights of all pixels of a row in each pixel of the blurred row."""
    return gaussian_filter1d(np.eye(SIDE), sigma, axis=0)


def wide_blur(field: np.ndarray, sigma: float, around: tuple[slice, slice] = np.s_[:, :]) -> np.ndarray:
    """`gaussian_filter` for a large sigma, in these rows and columns: by a matrix, which takes a third of its time."""
    rows, columns = around
    return blurring(sigma)[rows] @ field @ blurring(sigma)[columns].T


def hatching(width: float, around: tuple[slice, slice], rng: np.random.Generator) -> np.ndarray:
    """Parallel strokes to one of two sides, in these rows and columns; `width` is the share of ink."""
    y, x = np.ogrid[around]
    phase = (x + rng.choice([-1, 1]) * y) / rng.uniform(*STROKES) + rng.random()
    return above(np.abs(phase % 1 - 0.5) * 2, 1 - width, 0.2)


def in_the_middle(style: str, name: str) -> tuple[np.ndarray, tuple[slice, slice]]:
    """A drawing, three quarters of SIDE large, RGBA in 0..1; and the rows and columns that it and REACH take."""
    drawing = icon(style, name, SIDE)
    drawing = drawing.crop(drawing.getchannel("A").getbbox())
    scale = 0.75 * SIDE / max(drawing.size)
    drawing = drawing.resize([round(side * scale) for side in drawing.size], Image.BICUBIC)
    rgba = Image.new("RGBA", (SIDE, SIDE))
    left, top = (SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2
    rgba.paste(drawing, (left, top))
    rows = slice(max(0, top - REACH), top + drawing.height + REACH)
    columns = slice(max(0, left - REACH), left + drawing.width + REACH)
    return np.asarray(rgba) / 255, (rows, columns)


def tones(pixels: np.ndarray, mask: np.ndarray, body: np.ndarray) -> np.ndarray:
    """How light each pixel is, within the body and nowhere else, spread so that any thing uses light and dark."""
    inside, there = mask > 0.5, body > 0
    light = gaussian_filter(pixels @ (0.3, 0.59, 0.11) * mask + (1 - mask) * 0.5, 1)
    sorted_light = np.sort(light[inside])
    low, high = np.quantile(sorted_light, (0.02, 0.98))
    rank = np.zeros_like(light)
    rank[there] = np.searchsorted(sorted_light, light[there]) / len(sorted_light)
    return 0.6 * np.clip((light - low) / max(high - low, 0.05), 0, 1) + 0.4 * rank


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
    rgba, around = in_the_middle(style, name)
    whole = np.ascontiguousarray(rgba[..., 3])
    # What is more than REACH from the thing is ground alone.
    pixels, mask = rgba[around][..., :3], np.ascontiguousarray(whole[around])
    near = gaussian_filter(mask, 3)
    body, outline = above(near, 0.6), above(near, 0.15)
    tone = tones(pixels, mask, body)
    steps = sum(np.hypot(*np.gradient(gaussian_filter(pixels[..., i] * mask, 1.2))) for i in range(3))
    lines = above(gaussian_filter(np.clip(steps * 5, 0, 1), 1), 0.35, 0.2) * body
    dark = above(0.22 - tone, 0, 0.05) * body
    shade = wide_blur(np.roll(whole, (-20, -20), (0, 1)), 14, around)  # the light comes from above, on the left
    strokes = hatching(0.4, around, rng) * above(0.75 - np.minimum(shade, tone + 0.35), 0) * body

    canvas = np.full((3, SIDE, SIDE), np.reshape(paper, (3, 1, 1)), float)
    if with_rays:
        cover(canvas, rays(rng), inks[0])
        cover(canvas, above(wide_blur(whole, 7), 0.04), paper)
    part = canvas[(slice(None), *around)]
    cover(part, above(0.6 - tone, 0, 0.05) * body, inks[1])
    cover(part, above(tone, 0.6, 0.05) * above(0.85 - tone, 0, 0.05) * body, inks[2])
    cover(part, np.maximum.reduce([strokes, lines, dark, outline - body]), inks[0])
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(canvas.round().astype(np.uint8), 0, -1)))


def cover(canvas: np.ndarray, amount: np.ndarray, color: tuple[int, int, int]) -> None:
    """Ink over what is there, as far as it covers."""
    for channel, value in zip(canvas, color):
        channel += amount * (value - channel)
