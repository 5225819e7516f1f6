"""Which marks of the sample data's cat does a picture show: is it *that* cat?

    marks_of(image)  ->  {"green eye": True, "blue eye": True, "white blaze": True, ...}

A score by shared parts sees less than an eye: pictures without eyes pass true ones on it. Here the cat has six named
marks, a true picture has all, and no picture can have more. The face is found first: of its true drawing in all sizes
and tilts, without the ground, the one that differs least from the picture. Then every mark is looked for where it
belongs in that face, a little to all sides: pixels are named after the nearest of the cat's own ten colours (CIEDE2000
with lightness counted half, as blur mixes light and dark), and a mark is there if its colour covers enough more of its
place than of what is around. A green meadow is no green eye, a white cat has no blaze, a black one no dark ears. The
scarf is there if both of its colours are.

Run as a program it prints a table of a folder's pictures, for example of an evaluation of Task 2:

    PYTHONPATH=. python tiny_sd/measures/marks.py runs/dreambooth-cat/evaluation/lora
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter
from skimage.color import deltaE_ciede2000, rgb2lab

from finetune.data.images import square

SAMPLES = Path(__file__).resolve().parents[2] / "task_2_lora" / "sample_data"
SIDE, HALF = 128, 64  # px at which marks are named, and at which the face is found
MARGIN = ((HALF // 2, HALF // 2), (HALF // 2, HALF // 2))  # the middle of a head may be anywhere in the picture
SIZES = np.geomspace(0.7, 2.0, 14)  # of the head, where 1 is the sitting cat's
TILTS = (-16, -8, 0, 8, 16)  # degrees
VISIBLE = 0.9  # share of the head that lies within the picture
ANOTHER = 45.0  # root mean square Lab difference from which on there is no such head: true ones 15 to 40, animals 37 up

# The face lies on a grid of its own, in units of the drawing's head around its middle.
STEP = 3
ROWS, COLUMNS = np.mgrid[-141:162:STEP, -132:133:STEP].astype(float)
REACH = 4  # steps by which a mark may be off, to every side
COLOURS = ("FUR", "SHADOW", "BROWN", "WHITE", "PINK", "TURQUOISE", "RED", "GREEN", "BLUE", "BLACK")
FARTHEST = 25.0  # difference up to which a pixel has one of these colours
# Share of a mark's place that has its colour, less that of what is around; and of the scarf for each of its colours.
ENOUGH, ENOUGH_SCARF = 1 / 3, 1 / 8
MARKS = ("green eye", "blue eye", "white blaze", "dark ears", "pink nose", "scarf")
MOST = 5  # of the six, and more, make it that cat


class Face(NamedTuple):
    """Where the middle of the head is (px of a picture of SIDE), its size and tilt, and how far it is from the true."""

    x: float
    y: float
    size: float
    tilt: float  # degrees
    difference: float  # root mean square, in Lab


@lru_cache(maxsize=None)
def sample_module(name: str) -> ModuleType:
    """A module of the program that drew the sample data: as in a script, they find each other by their names alone."""
    sys.path.insert(0, str(SAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SAMPLES))


def true_head(size: float, tilt: float, side: int) -> np.ndarray:
    """The head with its scarf in the middle of a canvas: (side, side, 4), RGBA in 0..1."""
    cat = sample_module("cat")
    middle = cat.SIDE / 2
    head = cat.head(middle, middle, size, tilt, (cat.GREEN, cat.BLUE), (56, 120))
    return np.asarray(cat.rasterise(head, cat.SIDE, side)) / 255


def small_head(size: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Means of alpha and of Lab times alpha in each pixel of a canvas of HALF px: (HALF, HALF, 1 and 3)."""
    drawn = true_head(size, tilt, 4 * HALF)
    alpha, lab = drawn[..., 3:], np.zeros((*drawn.shape[:-1], 3))
    head = drawn[..., 3] > 0  # which is a small part of most canvases
    lab[head] = rgb2lab(drawn[head, :3]) * alpha[head]
    alpha, lab = (part.reshape(HALF, 4, HALF, 4, -1).mean((1, 3)) for part in (alpha, lab))
    return alpha, lab


def transform(images: np.ndarray) -> np.ndarray:
    """Fourier transform of (..., HALF, HALF), with room for all shifts."""
    return np.fft.rfft2(images, (2 * HALF, 2 * HALF))


def back_again(transforms: np.ndarray) -> np.ndarray:
    """`irfft2` of them, at the shifts that leave the middle of a head in the picture: (..., HALF + 1, HALF + 1)."""
    rows = np.fft.ifft(transforms, axis=-2)[..., : HALF + 1, :]
    return np.fft.irfft(rows, 2 * HALF)[..., : HALF + 1]


@lru_cache(maxsize=None)
def heads() -> tuple[list[tuple[float, float]], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True heads of all sizes and tilts: these, their areas and sums of squares (px of HALF, Lab), where enough of each
    would be seen, were its middle there (heads, ...), and conjugate transforms of its mask and, times -2, of Lab within
    it (heads, 4, ...).
    """
    kinds = [(float(size), float(tilt)) for size in SIZES for tilt in TILTS]
    alpha, lab = (np.stack(parts) for parts in zip(*(small_head(size, tilt) for size, tilt in kinds)))
    lab = lab / np.maximum(alpha, 1e-3)
    mask = alpha * (alpha > 0.5)
    colours = np.moveaxis(mask * lab, -1, 1)
    squares = (mask * lab**2).sum((1, 2, 3))
    mask = mask[..., 0]
    areas, masks = mask.sum((1, 2)), transform(mask).conj()
    inside = np.fft.rfft2(np.pad(np.ones((HALF, HALF)), MARGIN))
    seen = back_again(inside * masks) / areas[:, None, None] > VISIBLE
    return kinds, areas, squares, seen, np.concatenate([masks[:, None], -2 * transform(colours).conj()], axis=1)


def find_face(lab: np.ndarray) -> Face:
    """The most likely face in a picture, (SIDE, SIDE, 3) in CIE Lab: there always is one, near or far."""
    kinds, areas, squares, seen, transforms = heads()
    small = gaussian_filter(lab.reshape(HALF, 2, HALF, 2, 3).mean((1, 3)), (0.7, 0.7, 0))
    wide = np.pad(small, (*MARGIN, (0, 0)), mode="edge")
    own = np.fft.rfft2(np.stack([(wide**2).sum(-1), *np.moveaxis(wide, -1, 0)]))
    # The sum over the head of |picture - head|^2 at all places at once, by its three terms.
    sums = back_again(np.einsum("crk,hcrk->hrk", own, transforms)) + squares[:, None, None]
    means = np.where(seen, sums / areas[:, None, None], np.inf)
    kind, row, column = np.unravel_index(means.argmin(), means.shape)
    scale = SIDE / HALF
    return Face(column * scale, row * scale, *kinds[kind], float(np.sqrt(means[kind, row, column])))


def unrolled(lab: np.ndarray, face: Face) -> np.ndarray:
    """The face on its own grid, upright and of one size: (rows, columns, 3) in CIE Lab."""
    turn, unit = np.deg2rad(face.tilt), face.size * SIDE / sample_module("cat").SIDE
    x = face.x + unit * (COLUMNS * np.cos(turn) - ROWS * np.sin(turn)) - 0.5
    y = face.y + unit * (COLUMNS * np.sin(turn) + ROWS * np.cos(turn)) - 0.5
    return np.stack([map_coordinates(lab[..., i], [y, x], order=1, mode="nearest") for i in range(3)], axis=-1)


def named(lab: np.ndarray) -> np.ndarray:
    """The number of each pixel's colour among COLOURS, or -1 if it has none of them."""
    cat = sample_module("cat")
    codes = [getattr(cat, name) for name in COLOURS]
    palette = rgb2lab(np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in codes]))
    differences = np.stack([deltaE_ciede2000(lab, np.broadcast_to(color, lab.shape), kL=2) for color in palette])
    return np.where(differences.min(0) < FARTHEST, differences.argmin(0), -1)


def hues(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture is reddish, and where of a turquoise hue: in a blur, narrow stripes keep no more than that."""
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), np.rad2deg(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return (chroma > 18) & ((hue < 48) | (hue > 340)), (chroma > 10) & (hue > 150) & (hue < 250)


@lru_cache(maxsize=None)
def places() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Where each mark is on the face's grid, and what is around it: masks, a pair for each of its parts."""
    top = sample_module("cat").SIDE // 2
    drawn = true_head(1, 0, 2 * top)[top + ROWS.astype(int), top + COLUMNS.astype(int)]
    colour = np.where(drawn[..., 3] > 0.8, named(rgb2lab(drawn[..., :3])), -1)

    def of(*names: str) -> np.ndarray:
        return np.isin(colour, [COLOURS.index(name) for name in names])

    def away(x: float, y: float) -> np.ndarray:
        return np.hypot(COLUMNS - x, ROWS - y)

    def around(x: float, y: float) -> np.ndarray:
        return (away(x, y) > 33) & (away(x, y) < 46)

    width = np.abs(COLUMNS)
    tips, fur = of("BROWN") & (width > 45) & (ROWS < -75), of("FUR") & (ROWS < 40)
    blaze, flanks = of("WHITE") & (width < 16) & (ROWS < 0), (width > 22) & (width < 40) & (ROWS > -75) & (ROWS < -36)
    muzzle = (width < 34) & (ROWS > 8) & (ROWS < 48) & (away(0, 30) > 20)
    return {
        "green eye": [(of("GREEN") & (away(-49, -6) < 30), around(-49, -6))],
        "blue eye": [(of("BLUE") & (away(49, -6) < 30), around(49, -6))],
        "white blaze": [(blaze, flanks)],
        "dark ears": [(tips & (COLUMNS < 0), fur), (tips & (COLUMNS > 0), fur)],
        "pink nose": [(of("PINK") & (width < 20) & (ROWS < 45), muzzle)],
        "scarf": [(of("TURQUOISE", "RED") & (width < 70) & (ROWS > 75), np.zeros_like(fur))],
    }


@lru_cache(maxsize=None)
def looked_at() -> np.ndarray:
    """Where on the face's grid colours are looked for, in any mark but the scarf."""
    masks = [mask for mark, parts in places().items() if mark != "scarf" for part in parts for mask in part]
    return maximum_filter(np.logical_or.reduce(masks), 2 * REACH + 1)


def covered(hits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The share of a mask that hits cover, for each shift by up to REACH: (2 * REACH + 1, 2 * REACH + 1)."""
    shifted = sliding_window_view(np.pad(hits, REACH), mask.shape)
    # Where the mask is, which is the smaller part of the grid.
    return shifted[..., mask].sum(-1) / max(mask.sum(), 1)


def evidence(image: Image.Image) -> dict[str, float]:
    """How clearly each mark is there, by its name: shares, to be held against ENOUGH; 0 without a face."""
    lab = rgb2lab(np.asarray(square(image, SIDE)))
    face = find_face(lab)
    if face.difference > ANOTHER:
        return dict.fromkeys(MARKS, 0.0)
    lab = unrolled(lab, face)
    colour, (red, turquoise) = np.full(lab.shape[:2], -1), hues(lab)
    colour[looked_at()] = named(lab[looked_at()])
    wanted = {"green eye": "GREEN", "blue eye": "BLUE", "white blaze": "WHITE", "pink nose": "PINK"}
    shares = {}
    for mark, parts in places().items():
        if mark == "scarf":
            band = parts[0][0]
            shares[mark] = float(np.minimum(covered(red, band), covered(turquoise, band)).max())
            continue
        names = (wanted[mark],) if mark in wanted else ("BROWN", "BLACK")
        hits = np.isin(colour, [COLOURS.index(name) for name in names]).astype(float)
        shares[mark] = min(float((covered(hits, inside) - covered(hits, outside)).max()) for inside, outside in parts)
    return shares


def marks_of(image: Image.Image) -> dict[str, bool]:
    """Whether each of the MARKS is there, by its name, in a picture of any size."""
    return {mark: share >= (ENOUGH_SCARF if mark == "scarf" else ENOUGH) for mark, share in evidence(image).items()}


def pictures_in(folder: Path) -> dict[str, str]:
    """The pictures' names in a folder, and their prompts, empty where there is no prompts.json."""
    prompts = folder / "prompts.json"
    if prompts.exists():
        return json.loads(prompts.read_text(encoding="utf-8"))
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    return dict.fromkeys(sorted(names, key=lambda name: (len(name), name)), "")


def asked_for(description: str) -> tuple[Path, dict[str, str]]:
    """The folder that stands on the command line of a measure, and its pictures with their prompts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="pictures, and if there are any their prompts in prompts.json")
    folder = parser.parse_args().folder
    pictures = pictures_in(folder)
    if not pictures:
        parser.error(f"{folder} holds no pictures")
    return folder, pictures


def main() -> None:
    folder, pictures = asked_for("Which marks of the sample data's cat do pictures show?")
    print(f"{'':12}" + "".join(f"{mark:>13}" for mark in (*MARKS, "together")))
    rows = []
    for name, prompt in pictures.items():
        with Image.open(folder / name) as image:
            found = marks_of(image)
        rows.append(list(found.values()))
        signs = ["x" if there else "." for there in rows[-1]]
        print(f"{name:12}" + "".join(f"{sign:>13}" for sign in (*signs, sum(rows[-1]))) + f"  {prompt}".rstrip())
    table = np.array(rows)
    print(f"{'share':12}" + "".join(f"{share:13.0%}" for share in table.mean(0)))
    right = int((table.sum(1) >= MOST).sum())
    print(f"at least {MOST} of {len(MARKS)} marks: {right} of {len(rows)} pictures ({right / len(rows):.0%})")


if __name__ == "__main__":
    main()
