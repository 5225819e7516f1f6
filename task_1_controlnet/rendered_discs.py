"""Drawing Fill50K: a disc in one colour on another, and its outline as the condition."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Iterator

from PIL import Image, ImageDraw

# The size of Fill50K's own pictures, which all lengths here refer to.
FRAME = 512
COURSE_WIDTH = 5  # px in the frame: how thick the outlines of the course's own condition images are
JPEG_QUALITY = 50  # enough to see the noise around a line


@dataclass(frozen=True)
class Disc:
    """Centre and radius in pixels of the 512 px frame, which the disc may leave. x goes right, y down.

    The pixel in column i and row j, counted from 0, is of the disc if (i - x)² + (j - y)² <= radius², up to rounding.
    """

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Line:
    """How a condition shows a disc's outline. Its middle is the disc's rim, however thick it is.

    `width` is in pixels of the 512 px frame. A `soft` line fades over 1 + width / 2 of them, where a hard one ends from
    one pixel to the next. An `inverted` one is black on white. With `jpeg` it has been through a JPEG file.
    """

    width: int = COURSE_WIDTH
    soft: bool = False
    inverted: bool = False
    jpeg: bool = False


def draw(disc: Disc, resolution: int, mode: str, ground, *layers) -> Image.Image:
    """The 512 px frame, for a picture of `resolution` px: a plain `ground`, and on it the disc once for each of the
    `layers`, one over the other. A layer is how far it reaches beyond the disc (px of the frame) and its colour."""
    scale = -(-resolution // FRAME)  # beyond 512 px the frame grows, so that we only ever average and never repeat
    image = Image.new(mode, (scale * FRAME, scale * FRAME), ground)
    canvas = ImageDraw.Draw(image)
    for beyond, color in layers:
        reach = disc.radius + beyond
        box = [scale * (disc.x - reach), scale * (disc.y - reach)]
        # Pillow draws up to the box's last pixel, that included.
        box += [scale * (disc.x + reach) + scale - 1, scale * (disc.y + reach) + scale - 1]
        canvas.ellipse([round(edge) for edge in box], fill=color)
    return image


def fit(frame: Image.Image, resolution: int) -> Image.Image:
    # Averages of whole blocks: a filter with negative weights, such as Lanczos', would draw a second, dark rim.
    return frame if frame.width == resolution else frame.resize((resolution, resolution), Image.BOX)


def outline(line: Line) -> Iterator[tuple[int, int]]:
    """The line as layers for `draw`, from outside in, each where the brightness (0 to 255) changes."""
    # A line of 5 px has a middle pixel on the rim; one of 2 px has its middle between two.
    middle = 0 if line.width % 2 else 0.5
    fade = 1 + line.width / 2 if line.soft else 1
    before = 0
    # From outside in, each disc over the last: what is left of it is a ring of one brightness; a soft line has several.
    for beyond in range(line.width + 1, -line.width - 2, -1):
        strength = min(max((line.width / 2 - abs(beyond - middle)) / fade + 0.5, 0), 1)
        brightness = round(255 * strength)
        if brightness != before:
            yield beyond, 255 - brightness if line.inverted else brightness
        before = brightness


def through_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Image.open(file)


def render_condition(disc: Disc, resolution: int = FRAME, line: Line = Line()) -> Image.Image:
    """The disc's outline as an RGB image of `resolution` px; unless said otherwise as the course has it, 5 px thick in
    the 512 px frame and white on black."""
    frame = draw(disc, resolution, "L", 255 if line.inverted else 0, *outline(line))
    gray = fit(through_jpeg(frame) if line.jpeg else frame, resolution)
    return Image.merge("RGB", (gray, gray, gray))
