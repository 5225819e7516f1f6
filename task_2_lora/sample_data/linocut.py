"""Redraws an emoji as a three-ink linocut.

Indigo ink, coral and gold on cream paper, thick hand-cut outlines, hatched shadows and a background of carved rays.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from skimage.color import rgb2lab
from skimage.filters import gaussian

from svg import SIDE, rasterise

INK, CORAL, GOLD, PAPER = (44, 38, 98), (240, 94, 72), (248, 190, 84), (252, 238, 208)
RAYS = 26  # carved rays in the background
REACH = 32  # pixels around the subject within which its outline ends
# 5 px at the embedded base's 128: strokes closer than 4 its autoencoder softens (docs/base.md).
HATCH = 21  # pixels from one line of a hatched shadow to the next


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """A smooth random field with values around -1 to 1 and about `cells` bumps along each side."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((SIDE, SIDE), Image.BICUBIC))


def above(field: np.ndarray, threshold: np.ndarray | float, soft: float) -> np.ndarray:
    """How much of each pixel a printed shape covers: 1 where the field exceeds the threshold, with a soft rim."""
    return np.clip((field - threshold) / soft + 0.5, 0, 1)


def wave(phase: np.ndarray) -> np.ndarray:
    """A triangle wave: 0 in the middle of each line, 1 in the middle of each gap, one period per unit of phase."""
    return np.abs(phase % 1 - 0.5) * 2


@lru_cache(maxsize=None)
def blurring(sigma: float) -> np.ndarray:
    """As a matrix (SIDE, SIDE): the weights of all pixels of a row in each pixel of the blurred row."""
    return gaussian(np.eye(SIDE), (sigma, 0))


def wide_blur(part: np.ndarray, place: tuple[slice, slice], sigma: float) -> np.ndarray:
    """`gaussian` of a part of the picture, beside which there is nothing, for a large sigma: (SIDE, SIDE).

    To multiply with a matrix takes a quarter of its time.
    """
    rows, columns = place
    return blurring(sigma)[:, rows] @ part @ blurring(sigma)[:, columns].T


def place_icon(body: str, view: float, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Rasterise the icon at three quarters of the frame, a little moved and turned, with hand-cut wobbly contours.

    Returns the RGBA values in 0..1, and where the middle of the icon lies (x, y).
    """
    left, top, right, bottom = (edge * view / 256 for edge in rasterise(body, view, 256).getbbox())
    x, y = SIDE / 2 + rng.uniform(-14, 14, 2)
    zoom = 0.75 * SIDE / max(right - left, bottom - top)
    turn, flip = rng.uniform(-6, 6), rng.choice([-1, 1])
    move = f"translate({x} {y}) rotate({turn}) scale({zoom * flip} {zoom})"
    centre = f"translate({-(left + right) / 2} {-(top + bottom) / 2})"
    rgba = np.asarray(rasterise(f'<g transform="{move} {centre}">{body}</g>', SIDE, SIDE))
    # Each pixel is taken from a place nearby: the contours waver as a knife in wood does.
    rows, columns = np.mgrid[:SIDE, :SIDE]
    rows = np.clip(rows + 5 * noise(rng, 14), 0, SIDE - 1).astype(int)
    columns = np.clip(columns + 5 * noise(rng, 14), 0, SIDE - 1).astype(int)
    return rgba[rows, columns] / 255, x, y


def tones(rgb: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lightness of each pixel, spread so that any subject uses light, middle and dark; and its colour edges."""
    lab = gaussian(rgb2lab(rgb), 1.5, channel_axis=2)
    light = lab[..., 0] / 100
    counts = gaussian(np.histogram(light[inside], 64, (0, 1))[0].astype(float), 1)
    # How many of the subject's pixels are darker: a polar bear, too, has shadows then.
    rank = np.interp(light, (np.arange(64) + 0.5) / 64, (np.cumsum(counts) - counts / 2) / counts.sum())
    down, across = np.gradient(lab, axis=(0, 1))
    edges = np.sqrt(sum(np.moveaxis(down**2 + across**2, 2, 0)))
    return 0.55 * light + 0.45 * rank, gaussian(np.clip(edges / 9, 0, 1), 2)


def around(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns within REACH of a subject."""
    there = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    rows, columns = (slice(max(0, line[0] - REACH), line[-1] + 1 + REACH) for line in there)
    return rows, columns


def carved_rays(x: float, y: float, rng: np.random.Generator) -> np.ndarray:
    """The background: rays with tapered ends around a point, on a block with rough sides."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    turns = np.arctan2(rows - y, columns - x) * RAYS / (2 * np.pi) + rng.uniform()
    rays = above(wave(turns), 0.56 + 0.5 * noise(rng, 9), 0.07)
    margin = np.minimum(np.arange(SIDE), SIDE - 1 - np.arange(SIDE))
    return rays * above(np.minimum(margin, margin[:, None]), 18 - 4 * noise(rng, 24), 1)


def cover(canvas: np.ndarray, amount: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Ink over what is there, as far as it covers."""
    for channel, value in zip(canvas, colour):
        channel += amount * (value - channel)


def in_style(svg_body: str, view: float, seed: int, size: int = 512) -> Image.Image:
    """Redraw an emoji-like SVG drawing as a print of three inks on cream paper; `seed` varies place and texture."""
    rng = np.random.default_rng(seed)
    rgba, x, y = place_icon(svg_body, view, rng)
    whole = np.ascontiguousarray(rgba[..., 3])
    # What is not the background is drawn where the subject is, and as far around it as its outline may lie.
    near_it = around(whole)
    rgba, mask = rgba[near_it], np.ascontiguousarray(whole[near_it])
    inside = mask > 0.5
    rgb = rgba[..., :3] * mask[..., None] + rgba[inside][:, :3].mean(axis=0) * (1 - mask[..., None])
    tone, edges = tones(rgb, inside)

    # The shapes: outline, tone areas, and lines between colours except along areas that are all ink anyway.
    waves, near = noise(rng, 18), gaussian(mask, 7)
    wobble = waves[near_it]
    outside = above(near, 0.13 + 0.04 * wobble, 0.033)
    inner = above(near, 0.66 + 0.05 * wobble, 0.033)
    halo = above(wide_blur(mask, near_it, 14), 0.05 + 0.02 * waves, 0.017)
    halo[near_it] = np.maximum(halo[near_it], outside)
    dark = above(gaussian(above(0.27, tone, 0.017) * inner, 3), 0.18, 0.1)
    lines = above(edges, 0.30 + 0.06 * wobble, 0.04) * above(0.06, gaussian(dark, 5), 0.02)
    lines = above(gaussian(lines, 2), 0.45, 0.2)
    coral, gold = above(0.66, tone, 0.017) * inner, above(tone, 0.66, 0.017) * above(0.83, tone, 0.017) * inner

    # The texture: hatching which thickens towards the dark and the lower right.
    lit = np.roll(wide_blur(mask, near_it, 30), (-24, -24), axis=(0, 1))[near_it]
    shade = np.clip(0.93 - 1.6 * tone, 0, 0.6) + np.clip(1.2 - 1.6 * lit, 0, 0.55)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    angle = 0.8 + rng.uniform(-0.1, 0.1)
    across = ((columns * np.cos(angle) + rows * np.sin(angle) + 6 * noise(rng, 6)) / HATCH)[near_it]
    hatch = above(np.where(shade > 0.12, np.clip(shade, 0.22, 0.68), -1), wave(across), 2 / HATCH)
    rays = carved_rays(x, y, rng)

    # Print: paper, the background, then the subject. Coral and gold are a little out of register, as in real prints.
    canvas = np.full((3, SIDE, SIDE), np.reshape(PAPER, (3, 1, 1)), float)
    cover(canvas, rays, INK)
    cover(canvas, halo, PAPER)
    part = canvas[(slice(None), *near_it)]
    cover(part, np.roll(coral, (4, -5), axis=(0, 1)) * outside, CORAL)
    cover(part, np.roll(gold, (4, -5), axis=(0, 1)) * outside, GOLD)
    cover(part, np.maximum.reduce([hatch * outside, lines * outside, dark, outside - inner]), INK)
    pixels = canvas.round().astype(np.uint8).transpose(1, 2, 0).copy()
    return Image.fromarray(pixels).resize((size, size), Image.LANCZOS)
