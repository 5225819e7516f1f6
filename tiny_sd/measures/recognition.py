"""Which of the everyday things does a picture show, if any?

    recognise([image, ...])  ->  ["a cat", ...]

The nearest drawing of the sets wins. A scene leaves place, size, direction and background to chance, so these are taken
out before pictures are compared: the thing is what differs from the colour along the border; it is cut out, brought to
one size and compared in CIE Lab with every drawing, as it is and mirrored, on the same background. What remains is the
drawing itself, and Lab distances are what an eye sees of it.

    recognise_redrawn([image, ...])

does it for pictures in another style, where colours say nothing and there may be a pattern around the thing. What is
left is lines, so histograms of oriented gradients (Dalal & Triggs, 2005) of the middle of the picture are correlated
with those of every drawing and of a print of it with rays around it: a tree in rays is no ferris wheel.

    recognise_place([image, ...])  ->  ["in a garden", ...]

says where the thing is, by the colours along the border of the picture, again by the nearest true one.

Run as a program it says how many of the pictures of an evaluation of Task 2 show what their prompts ask for:

    PYTHONPATH=. python tiny_sd/measures/recognition.py --redrawn runs/lora-custom/evaluation/lora
    PYTHONPATH=. python tiny_sd/measures/recognition.py --place runs/dreambooth-cat/evaluation/lora
"""

from __future__ import annotations

import argparse
import json
from functools import lru_cache
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image
from skimage.color import rgb2lab
from skimage.filters import gaussian
from skimage.measure import find_contours, label, regionprops

from task_1_controlnet.metrics import fit_circle, overlap
from tiny_sd.pictures.icons import STYLES, icon, load_subjects
from tiny_sd.pictures.places import PLACES
from tiny_sd.pictures.prints import block_print

SIDE = 24  # px at which things are compared: enough to tell them apart, and blurred edges do not count
PRINT_INKS, PRINT_PAPER = ((30, 30, 80), (220, 90, 70), (240, 190, 80)), (250, 238, 210)  # any: only lines count
CELL, DIRECTIONS = 8, 8  # px along a side in which edges are counted by their directions, and how many these are
VISIBLE = 12.0  # Lab distance from the background from which a pixel belongs to the thing


@lru_cache(maxsize=None)
def gallery() -> tuple[np.ndarray, list[str]]:
    """All drawings and their mirror images, RGBA in 0..1 with colours multiplied by alpha, and what each shows."""
    drawings, names = [], []
    for style in STYLES:
        for name, subject in load_subjects().items():
            drawing = icon(style, name, 128)
            rgba = np.asarray(to_square(drawing.crop(drawing.getchannel("A").getbbox()), (0, 0, 0, 0))) / 255
            rgba[..., :3] *= rgba[..., 3:]
            drawings += [rgba, rgba[:, ::-1]]
            names += [subject, subject]
    return np.stack(drawings).astype(np.float32), names


def to_square(image: Image.Image, fill: tuple[int, ...], side: int = SIDE) -> Image.Image:
    longer = max(image.size)
    square = Image.new(image.mode, (longer, longer), fill)
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    return square.resize((side, side), Image.BOX)


def cut_out(image: Image.Image, side: int = SIDE) -> tuple[Image.Image, tuple[int, ...]] | None:
    """The thing in an RGB picture, `side` px, and the background's colour; None if there is nothing."""
    rgb = np.asarray(image.convert("RGB"))
    edges = (rgb[:2], rgb[-2:], rgb[:, :2], rgb[:, -2:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    background = np.median(border, axis=0)
    difference = np.linalg.norm(rgb2lab(rgb) - rgb2lab(background[None, None] / 255), axis=2)
    parts = regionprops(label(gaussian(difference, 1) > VISIBLE))
    if not parts:
        return None
    largest = max(part.area for part in parts)
    boxes = np.array([part.bbox for part in parts if part.area > largest / 50])
    (top, left), (bottom, right) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    fill = tuple(int(value) for value in background)
    return to_square(image.convert("RGB").crop((left, top, right, bottom)), fill, side), fill


def recognise(images: Sequence[Image.Image]) -> list[str | None]:
    """What each picture shows, in the words of a caption; None for a plain one."""
    drawings, names = gallery()
    alpha, lab = drawings[..., 3], rgb2lab(drawings[..., :3])
    # Most pixels are all drawing or all ground: only along rims do both have to be mixed anew for every picture.
    clear, rims = alpha == 0, (alpha > 0) & (alpha < 1)
    colors, missing = drawings[rims, :3], 1 - alpha[rims, None]
    found: list[str | None] = []
    for image in images:
        thing = cut_out(image)
        if thing is None:
            found.append(None)
            continue
        picture, background = thing
        ground = np.array(background, np.float32) / 255
        lab[clear], lab[rims] = rgb2lab(ground), rgb2lab(colors + missing * ground)
        difference = lab - rgb2lab(np.asarray(picture, np.float32) / 255)
        distances = np.sqrt(np.einsum("nyxc,nyxc->nyx", difference, difference)).mean((1, 2))
        found.append(names[int(distances.argmin())])
    return found


def recognise_pair(images: Sequence[Image.Image]) -> list[set[str | None]]:
    """The two things side by side in each picture, in the words of a caption: what each half of it shows."""
    halves = []
    for image in images:
        middle = image.width // 2
        halves += [image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))]
    found = recognise(halves)
    return [set(pair) for pair in zip(found[::2], found[1::2])]


def roundness(disc: np.ndarray) -> float:
    """Overlap (IoU, 0 to 1) of a mask with the circle that fits its rim best; where it leaves the frame is no rim."""
    y, x = np.concatenate(find_contours(disc.astype(float), 0.5)).T
    a, b, radius = fit_circle(x, y, np.ones_like(x))
    rows, columns = np.ogrid[: disc.shape[0], : disc.shape[1]]
    return overlap(disc, (columns - a) ** 2 + (rows - b) ** 2 <= radius**2)


def lightness_of(image: Image.Image) -> np.ndarray:
    """Of a picture of 128 px, without its border, a little blurred: (112, 112), in 0..1."""
    middle = np.asarray(image.convert("RGB"))[8:-8, 8:-8]
    return gaussian(rgb2lab(middle)[..., 0] / 100, 1.5)


def lines_of(lightness: np.ndarray) -> np.ndarray:
    """The directions of the edges in what `lightness_of` gives, as a vector of length 1.

    They are what scikit-image's `hog` finds with cells of CELL px and blocks of 2 x 2, in a third of its time: it
    brings one block after the other to length 1.
    """
    down, across = np.zeros_like(lightness), np.zeros_like(lightness)
    down[1:-1] = lightness[2:] - lightness[:-2]
    across[:, 1:-1] = lightness[:, 2:] - lightness[:, :-2]
    turns = (np.rad2deg(np.arctan2(down, across)) % 180 / (180 / DIRECTIONS)).astype(int)
    rows, columns = (side // CELL for side in lightness.shape)
    cells = np.arange(rows * columns).reshape(rows, columns).repeat(CELL, 0).repeat(CELL, 1)
    bins = DIRECTIONS + 1  # the last for what rounding takes to 180 degrees, which counts nowhere
    votes = np.bincount((cells * bins + turns).ravel(), np.hypot(down, across).ravel(), rows * columns * bins)
    votes = votes.reshape(rows, columns, bins)[..., :DIRECTIONS] / CELL**2
    corners = [votes[i : rows - 1 + i, j : columns - 1 + j] for i in (0, 1) for j in (0, 1)]
    blocks = np.concatenate(corners, axis=-1)
    for most in (0.2, np.inf):  # no direction may outweigh all others, and what is left has length 1 again
        blocks = np.minimum(blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-10), most)
    return blocks.ravel() / max(float(np.linalg.norm(blocks)), 1e-6)


@lru_cache(maxsize=None)
def gallery_of_lines() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of every drawing and its mirror image: the mean of `lines_of` it, three quarters of the picture large, and of a
    print of it with rays around it. What differs between the two tells nothing of the thing.

    The lines that all things have in common, most of them the rays', are subtracted; they are the second that is
    returned, and what each drawing shows is the third.
    """
    lines, names = [], []
    for style in STYLES:
        for number, (name, subject) in enumerate(load_subjects().items()):
            drawing = icon(style, name, 128)
            drawing = drawing.crop(drawing.getchannel("A").getbbox())
            drawing.thumbnail((96, 96))
            plain = Image.new("RGB", (128, 128), "ivory")
            plain.paste(drawing, ((128 - drawing.width) // 2, (128 - drawing.height) // 2), drawing)
            rng = np.random.default_rng(number)
            in_rays = block_print(style, name, PRINT_INKS, PRINT_PAPER, True, rng).resize((128, 128))
            both = [lightness_of(picture) for picture in (plain, in_rays)]
            mirrored = [lightness[:, ::-1] for lightness in both]
            lines += [(lines_of(a) + lines_of(b)) / 2 for a, b in (both, mirrored)]
            names += [subject, subject]
    own = np.stack(lines)
    common = own.mean(0)
    own -= common
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    return own, common, names


def recognise_redrawn(images: Sequence[Image.Image]) -> list[str]:
    """What each picture shows, in the words of a caption, whatever the style: whose lines are most like its own."""
    own, common, names = gallery_of_lines()
    found = [lines_of(lightness_of(image.resize((128, 128)))) - common for image in images]
    return [names[int((own @ lines).argmax())] for lines in found]


def border_of(image: Image.Image) -> np.ndarray:
    """The colours along the border, in CIE Lab: two rings of a picture of 16 x 16."""
    lab = rgb2lab(np.asarray(image.convert("RGB").resize((16, 16), Image.BOX)))
    return np.concatenate([lab[:2].ravel(), lab[-2:].ravel(), lab[2:-2, :2].ravel(), lab[2:-2, -2:].ravel()])


@lru_cache(maxsize=None)
def gallery_of_places() -> tuple[np.ndarray, list[str]]:
    """`border_of` forty drawings of each place, and which place it is."""
    names = [name for name in PLACES for _ in range(40)]
    return np.stack([border_of(PLACES[name](np.random.default_rng(i))) for i, name in enumerate(names)]), names


def recognise_place(images: Sequence[Image.Image]) -> list[str]:
    """Where the thing in each picture is, in the words of a caption."""
    gallery, names = gallery_of_places()
    return [names[int(np.abs(gallery - border_of(image)).mean(1).argmin())] for image in images]


def asked_for(prompt: str) -> str | None:
    """The thing that a prompt names; the longest, since "a hot dog" is no dog."""
    named = [subject for subject in load_subjects().values() if f" {subject} " in f" {prompt} "]
    return max(named, key=len, default=None)


def place_asked_for(prompt: str) -> str | None:
    return next((place for place in PLACES if prompt.endswith(place)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many pictures show the thing that their prompts name?")
    parser.add_argument("folder", type=Path, help="pictures, and their prompts by file name in prompts.json")
    parser.add_argument("--redrawn", action="store_true", help="the pictures are in another style than the base's")
    parser.add_argument("--place", action="store_true", help="where the thing is, of prompts that say where")
    args = parser.parse_args()
    prompts = json.loads((args.folder / "prompts.json").read_text(encoding="utf-8"))
    asked, recogniser = asked_for, recognise_redrawn if args.redrawn else recognise
    if args.place:
        asked, recogniser = place_asked_for, recognise_place
        prompts = {name: prompt for name, prompt in prompts.items() if place_asked_for(prompt)}
    found = recogniser([Image.open(args.folder / name) for name in prompts])
    for (name, prompt), shown in zip(prompts.items(), found):
        print(f"{name:12} {prompt!r}: {shown or 'nothing'}")
    right = sum(shown == asked(prompt) for shown, prompt in zip(found, prompts.values()))
    print(f"{right} of {len(prompts)} show what was asked for")


if __name__ == "__main__":
    main()
