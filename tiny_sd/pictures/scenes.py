"""The pictures that the embedded base learns from: simple shapes in named colours, and drawings of everyday things.

A scene is a pure function of its index, so a training set is a range of numbers and needs no files. Colour pairs whose
`is_held_out` is true never appear together in training; the model card's figures are measured on them. Run as a program
it writes scenes with captions to a folder, for other trainings:

    PYTHONPATH=. python tiny_sd/pictures/scenes.py --number 2000 --icon_share 1 --output_dir runs/pictures
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.argument_types import natural_int, positive_int, share
from finetune.data.colors import COLORS
from finetune.run.progress import progress_bar
from tiny_sd.pictures.icons import STYLES, icon, load_subjects
from tiny_sd.pictures.places import PLACES
from tiny_sd.pictures.prints import block_print

CANVAS = 512
NAMES = list(COLORS)

# What a scene can show, in a unit square around (0, 0): the outline's corners, or None for a circle.
SHAPES: dict[str, list[tuple[float, float]] | None] = {
    "circle": None,
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "star": [
        (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5))
        for i, r in zip(range(10), [1.0, 0.42] * 5)
    ],
    "cross": [
        (-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3),
        (0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3),
    ],
}  # fmt: skip

ONE_CIRCLE = [
    "{a} circle with {b} background",
    "{a} circle with {b} background",
    "{a} circle with a {b} background",
    "a {a} circle on a {b} background",
    "{b} background with a {a} circle",
    "a {a} circle on {b}",
]
ONE_SHAPE = [caption.replace("circle", "{s}") for caption in ONE_CIRCLE]
TWO_SHAPES = ["{a} {s} and {c} {z} with {b} background", "a {a} {s} and a {c} {z} on a {b} background"]
PLAIN = ["{b} background", "plain {b}", "a {b} picture"]
# {n} is a thing with its article, "a cat"; {k} the style that it is drawn in. One in the first style need not name
# it: a caption that fits two drawings of the same thing is twice as much to learn.
ONE_THING = [
    "{n}",
    "{n} on a {b} background",
    "{n} on {b}",
    "{b} background with {n}",
    "{k} drawing of {n}",
    "a {k} drawing of {n} on a {b} background",
]
# {w} says where it is.
THING_SOMEWHERE = ["{n} {w}", "{k} drawing of {n} {w}", "a {k} drawing of {n} {w}"]
# {m} is another thing, on the right.
TWO_THINGS = [
    "{n} and {m}",
    "{n} and {m} on a {b} background",
    "{k} drawing of {n} and {m}",
    "a {k} drawing of {n} and {m} on {b}",
]
# {a} is the ink, {b} the paper and {g} what is carved around the thing.
ONE_PRINT = ["print of {n}{g}", "a print of {n}{g}", "a {a} print of {n}{g} on {b}", "a {a} print of {n} on {b}{g}"]
# {t} fills what is of middle tone and {u} what is light. A base that never reads these in a caption takes them from the
# noise, and leaves a style's LoRA no words that it could set them by (2026-12-02).
PRINT_IN_INKS = [
    "print of {n}{g} in {t} and {u}",
    "a print of {n}{g} in {t} and {u}",
    "a {a} print of {n}{g} on {b} in {t} and {u}",
]
BRIGHTNESS = {name: np.dot(color, (0.3, 0.59, 0.11)) for name, color in COLORS.items()}
INKS = [name for name in NAMES if BRIGHTNESS[name] < 90]
TINTS = [name for name in NAMES if 90 < BRIGHTNESS[name] < 210]
PAPERS = [name for name in NAMES if BRIGHTNESS[name] > 210]
ICON_SIZE = 256  # px at which a drawing is kept; a scene shows it smaller


def is_held_out(first: str, second: str) -> bool:
    """True for the tenth of all (shape colour, background colour) pairs that training never shows."""
    return zlib.crc32(f"{first}/{second}".encode()) % 10 == 0


def draw(draw_on: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float, color: str) -> None:
    corners = SHAPES[shape]
    if corners is None:
        draw_on.ellipse([x - size, y - size, x + size, y + size], fill=COLORS[color])
    else:
        draw_on.polygon([(x + size * u, y + size * v) for u, v in corners], fill=COLORS[color])


def paste_pair(image: Image.Image, style: str, names: list[str], rng: np.random.Generator) -> None:
    """Puts two drawings side by side, each at most half as wide as the picture, on the grid of `paste_icon`."""
    cell = CANVAS // 8
    for name, left in zip(names, (0, 4)):
        cells, drawing = int(rng.integers(3, 5)), icon(style, name, ICON_SIZE)
        drawing = drawing.resize((cells * cell, cells * cell), Image.BICUBIC)
        top = int(rng.integers(2, 4))
        image.paste(drawing, ((left + int(rng.integers(0, 5 - cells))) * cell, top * cell), drawing)


def paste_icon(image: Image.Image, style: str, name: str, rng: np.random.Generator, anywhere: bool) -> None:
    """Puts a drawing into the picture: in the middle of three out of four, else anywhere and at one of two sizes.

    Places and sizes are multiples of an eighth of the picture, two cells of the latents: the same drawing then has the
    same latents wherever it stands, which is much less to learn for a base trained on a CPU. With `anywhere` it is
    three to seven eighths large, and nothing tells where it stands.
    """
    cell, cells, left, top = CANVAS // 8, 6, 1, 1
    if anywhere or rng.random() < 0.25:
        cells = int(rng.integers(3 if anywhere else 6, 8))
        left, top = (int(place) for place in rng.integers(0, 8 - cells + 1, 2))
    drawing = icon(style, name, ICON_SIZE).resize((cells * cell, cells * cell), Image.BICUBIC)
    image.paste(drawing, (left * cell, top * cell), drawing)


def print_scene(index: int) -> tuple[Image.Image, list[str]]:
    """A block print of an everyday thing, in two of three with rays around it, and every caption that fits it."""
    rng = np.random.default_rng([20240929, index])
    while True:
        a, b = str(rng.choice(INKS)), str(rng.choice(PAPERS))
        if not is_held_out(a, b):
            break
    t, u = (str(tint) for tint in rng.choice(TINTS, 2, replace=False))
    subjects = load_subjects()
    name = str(rng.choice(list(subjects)))
    with_rays = bool(rng.random() < 2 / 3)
    inks = tuple(COLORS[one] for one in (a, t, u))
    image = block_print(next(iter(STYLES)), name, inks, COLORS[b], with_rays, rng)
    words = {"a": a, "b": b, "t": t, "u": u, "n": subjects[name], "g": " with rays" if with_rays else ""}
    return image, [caption.format(**words) for caption in ONE_PRINT + PRINT_IN_INKS]


def things_on(
    ground: Image.Image, index: int, rng: np.random.Generator, place_share: float, pair_share: float, anywhere: bool
) -> tuple[Image.Image, list[str], dict[str, str]]:
    """An everyday thing or two, drawn on this plain ground or in a place: picture, captions, and the words in them."""
    subjects = load_subjects()
    style, name = str(rng.choice(list(STYLES))), str(rng.choice(list(subjects)))
    image, captions, words = ground, ONE_THING, {"k": style, "n": subjects[name]}
    place_rng = np.random.default_rng([20241125, index])
    in_place = place_rng.random() < place_share
    if in_place:
        captions, words["w"] = THING_SOMEWHERE, str(place_rng.choice(list(PLACES)))
        image = PLACES[words["w"]](place_rng)
    pair_rng = np.random.default_rng([20261129, index])
    if not in_place and pair_rng.random() < pair_share:
        other = str(pair_rng.choice([one for one in subjects if one != name]))
        captions, words["m"] = TWO_THINGS, subjects[other]
        paste_pair(image, style, [name, other], pair_rng)
    else:
        paste_icon(image, style, name, rng, anywhere)
    return image, [caption for caption in captions if "{k}" in caption or style == next(iter(STYLES))], words


def scene(
    index: int,
    resolution: int,
    icon_share: float = 0.0,
    print_share: float = 0.0,
    place_share: float = 0.0,
    pair_share: float = 0.0,
    anywhere: bool = False,
) -> tuple[Image.Image, list[str]]:
    """Draws scene number `index`: an RGB image of `resolution` px and every caption that fits it.

    Of all scenes, `icon_share` show a drawing of an everyday thing, `place_share` of these in a place and the others on
    a plain ground, of which `pair_share` with a second thing beside it; `print_share` show a print of one, and the rest
    is the same whatever the shares. Drawings stand mostly in the middle, or `anywhere`.
    """
    rng = np.random.default_rng([20240927, index])
    kind = rng.random()
    while True:
        a, b, c = (NAMES[i] for i in rng.choice(len(NAMES), 3, replace=False))
        if not (is_held_out(a, b) or is_held_out(c, b)):
            break
    s, z = (str(name) for name in rng.choice(list(SHAPES)[1:], 2, replace=False))

    image = Image.new("RGB", (CANVAS, CANVAS), COLORS[b])
    canvas = ImageDraw.Draw(image)
    things: dict[str, str] = {}
    chance = np.random.default_rng([20240928, index]).random()
    if chance > 1 - print_share:
        image, captions = print_scene(index)
        return image.resize((resolution, resolution), Image.BOX), captions
    if chance < icon_share:
        image, captions, things = things_on(image, index, rng, place_share, pair_share, anywhere)
    elif kind < 0.70:
        captions, s = ONE_CIRCLE, "circle"
        draw(canvas, s, *rng.uniform(0, CANVAS, 2), rng.uniform(40, 280), a)
    elif kind < 0.85:
        captions = ONE_SHAPE
        draw(canvas, s, *rng.uniform(100, CANVAS - 100, 2), rng.uniform(80, 180), a)
    elif kind < 0.96:
        captions = TWO_SHAPES
        s = "circle" if rng.random() < 0.5 else s
        left = rng.random() < 0.5
        for shape, color, center in ((s, a, 0.27 if left else 0.73), (z, c, 0.73 if left else 0.27)):
            x, y = CANVAS * center + rng.uniform(-20, 20), rng.uniform(130, CANVAS - 130)
            draw(canvas, shape, x, y, rng.uniform(60, 115), color)
    else:
        captions = PLAIN

    image = image.resize((resolution, resolution), Image.BOX)
    return image, [caption.format(a=a, b=b, c=c, s=s, z=z, **things) for caption in captions]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes scenes and a metadata.jsonl with one caption of each.")
    parser.add_argument("--number", type=positive_int, required=True, help="how many scenes")
    parser.add_argument("--start", type=natural_int, default=0, help="the first one's number")
    parser.add_argument("--icon_share", type=share, default=0.0, help="share of scenes that show an everyday thing")
    parser.add_argument("--anywhere", action="store_true", help="draw things at any place and size, not in the middle")
    parser.add_argument("--resolution", type=positive_int, default=128, help="px")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with (args.output_dir / "metadata.jsonl").open("w") as lines:
        for index in progress_bar(range(args.start, args.start + args.number), desc="Scenes"):
            image, captions = scene(index, args.resolution, args.icon_share, anywhere=args.anywhere)
            image.save(args.output_dir / f"{index:08d}.png")
            caption = captions[index % len(captions)]
            lines.write(json.dumps({"file_name": f"{index:08d}.png", "text": caption}) + "\n")


if __name__ == "__main__":
    main()
