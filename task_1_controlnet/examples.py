"""The five test prompts and conditions, and the picture that shows what was drawn for them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Sequence

from PIL import Image, ImageDraw, ImageFont

from finetune.data.images import open_condition, square

DATA = Path(__file__).resolve().parent / "data"
IMAGES = (".png", ".jpg", ".jpeg")


def load_test_data(folder: Path = DATA) -> tuple[list[Image.Image], list[str]]:
    """Five condition images (RGB; 512 px, of the course's kind) and the course's prompts for them.

    The course's own images may lie there in their place, as PNG or JPEG.

    Raises:
        ValueError: if a prompt has no condition image, or more than one.
    """
    prompts = json.loads((folder / "test_prompts.json").read_text(encoding="utf-8"))
    # By number, as the file's keys are text: "10" would stand before "2".
    keys = sorted(prompts, key=int)
    conditions = []
    for key in keys:
        found = [path for path in (folder / "test_conditions").glob(f"{key}.*") if path.suffix.lower() in IMAGES]
        if len(found) != 1:
            raise ValueError(
                f"{folder / 'test_conditions'} must hold one image for prompt {key}, {key}.png or {key}.jpg, and has "
                f"{len(found)}: put one there, or write them anew by `python fill50k.py --write_test_data data`."
            )
        conditions.append(open_condition(found[0]))
    return conditions, [prompts[key] for key in keys]


def draw_grid(
    rows: Sequence[tuple[Sequence[Image.Image], str]], headings: Sequence[str], size: int = 192
) -> Image.Image:
    """A picture of results: each row has some images, of `size` px, and a text beside them.

    Args:
        rows: pairs of images, as many as there are headings, and text (lines are broken where needed). Of an image the
            centre square is shown.
    """
    margin, text_width, top = 8, 300, 28
    width = margin + len(headings) * (size + margin) + text_width
    grid = Image.new("RGB", (width, top + len(rows) * (size + margin)), "white")
    canvas, font = ImageDraw.Draw(grid), ImageFont.load_default()
    if isinstance(font, ImageFont.FreeTypeFont):
        font = ImageFont.load_default(size=15)  # Pillow 10.1 and later
    for column, heading in enumerate(headings):
        canvas.text((margin + column * (size + margin), 6), heading, "black", font=font)
    for row, (images, text) in enumerate(rows):
        y = top + row * (size + margin)
        for column, image in enumerate(images):
            tile = square(image, min(image.size)).resize((size, size), Image.LANCZOS)
            grid.paste(tile, (margin + column * (size + margin), y))
        lines = [part for line in text.split("\n") for part in (textwrap.wrap(line, 34) or [""])]
        canvas.multiline_text((width - text_width + margin, y + 4), "\n".join(lines), "black", font=font, spacing=6)
    return grid
