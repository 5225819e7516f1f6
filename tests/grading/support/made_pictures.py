"""Pictures for the tests that compare hand-ins: scenes, discs, and what becomes of them in a report."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Callable

import typst
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


def pdf_of(words: str, pictures: list[Image.Image], folder: Path, encode: Callable[[Image.Image], bytes]) -> bytes:
    """A report with these words and pictures, typeset."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"#text(size: 9pt, {json.dumps(words, ensure_ascii=False)})"]
    for i, picture in enumerate(pictures):
        (folder / f"{i}.img").write_bytes(encode(picture))
        kind = "jpg" if (folder / f"{i}.img").read_bytes().startswith(b"\xff\xd8") else "png"
        lines.append(f'#box(image("{i}.img", format: "{kind}", width: 25mm))')
    (folder / "report.typ").write_text("\n".join(lines), encoding="utf-8")
    return typst.compile(str(folder / "report.typ"))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def jpeg(scale: float, quality: int) -> Callable[[Image.Image], bytes]:
    def encode(picture: Image.Image) -> bytes:
        file = io.BytesIO()
        size = [round(scale * side) for side in picture.size]
        picture.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
        return file.getvalue()

    return encode
