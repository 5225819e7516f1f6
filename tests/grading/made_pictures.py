"""Pictures for the tests that compare hand-ins: scenes, discs, and what becomes of them in a report."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw


def scene(seed: int, size: int = 128) -> Image.Image:
    """Some shapes of some colours, with a texture, as a base model draws them."""
    source = random.Random(seed)
    image = Image.effect_noise((size, size), 30).convert("RGB").point(lambda value: value // 4)
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, side = (source.randrange(size) for _ in range(3))
        color = tuple(source.randrange(256) for _ in range(3))
        draw.rounded_rectangle((x - side // 3, y - side // 3, x + side // 3, y + side // 3), side // 9, color)
    return image


def as_jpeg(image: Image.Image, scale: float, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.resize([round(side * scale) for side in image.size]).save(file, "JPEG", quality=quality)
    return Image.open(file)


def disc(center: int, ground: str, color: str) -> Image.Image:
    image = Image.new("RGB", (128, 128), ground)
    ImageDraw.Draw(image).ellipse((center - 30, center - 30, center + 30, center + 30), color)
    return image
