"""Conditions: what was drawn in the browser becomes one, pictures become their edges, and results are scored by it."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from examples import load_test_data
from finetune.data.images import condition_to_rgb, square, to_rgb
from metrics import canny_edges, edge_f1, fit_circle, line_strength, score

from .requests import Refused

SIDE = 512  # px: the canvas, and what is kept of any picture
MOST_SIDE = 4096  # px: a file of a few bytes may hold a picture of gigabytes
MOST_CHARACTERS = 3_000_000  # of a picture as text; 512 x 512 px of noise have 1,050,000
TOO_MANY_PX = f"That picture has too many px: at most {MOST_SIDE} a side are read."
KINDS = ("PNG", "JPEG", "WEBP")
# A line counts as a circle's if its pixels lie within so much of one, as a share of the radius (root mean square): a
# hand is at 0.02 to 0.05, a square at 0.1. And if it is no larger than the frame, and at least a quarter of one.
CIRCLE_LIKE = 0.07
LEAST_ARC = 9  # of 36 directions
ROUND = re.compile(r"\b(circle|disc|disk|ball|sun|moon)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Score:
    """How well a picture follows its condition, 0 to 1: `measure` is "IoU" of discs, or "edge F1"."""

    measure: str
    value: float


def picture(sent: Any) -> Image.Image:
    """The centre square, 512 px in RGB, of a picture that the browser sent as a data URL. Raises Refused."""
    return square(to_rgb(opened(sent), "the picture"), SIDE)


def condition(sent: Any) -> Image.Image:
    """The same for a condition, which must show something. Raises Refused."""
    nothing = "The canvas is empty: draw an outline, or take one of the test conditions."
    if not sent:
        raise Refused(nothing)
    try:
        image = square(condition_to_rgb(opened(sent), "the condition"), SIDE)
    except Refused:
        raise
    except ValueError as error:  # nothing but transparency, say
        raise Refused(str(error)) from error
    if line_strength(image).max() == 0:
        raise Refused(nothing)
    return image


def opened(sent: Any) -> Image.Image:
    """The picture in a data URL, as it is stored. Raises Refused for anything else, and for what is too large."""
    if not isinstance(sent, str) or not sent.startswith("data:image/"):
        raise Refused("That is no picture: draw one, or load a PNG, JPEG or WebP file.")
    if len(sent) > MOST_CHARACTERS:
        raise Refused("That picture is too large: make it smaller.")
    try:
        content = base64.b64decode(sent.partition(",")[2], validate=True)
        image = Image.open(io.BytesIO(content), formats=KINDS)
        if max(image.size) <= MOST_SIDE:
            image.load()
    except Image.DecompressionBombError as error:
        raise Refused(TOO_MANY_PX) from error
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise Refused("That picture is damaged, or none: load a PNG, JPEG or WebP file.") from error
    if max(image.size) > MOST_SIDE:
        raise Refused(TOO_MANY_PX)
    return image


def as_url(image: Image.Image) -> str:
    """A picture as the browser shows it, without a file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def edges(image: Image.Image) -> Image.Image:
    """The condition that make_canny.py would make of a picture."""
    return canny_edges(image).convert("RGB")


@functools.lru_cache(maxsize=1)
def test_conditions() -> tuple[tuple[Image.Image, str], ...]:
    """The five test conditions, 512 px, with their prompts."""
    images, prompts = load_test_data()
    return tuple((square(image, SIDE), prompt) for image, prompt in zip(images, prompts))


def is_circle(image: Image.Image) -> bool:
    """Whether a condition shows one circle, or as much of one as is within the frame."""
    strength = line_strength(image)
    y, x = np.nonzero(strength)
    if len(x) < 3:
        return False
    unit = max(strength.shape)
    x, y = (x + 0.5) / unit, (y + 0.5) / unit
    weight = strength[strength > 0]
    a, b, radius = fit_circle(x, y, weight)
    if not 0 < radius <= 1:
        return False
    deviation = np.sqrt(np.average((np.hypot(x - a, y - b) - radius) ** 2, weights=weight))
    directions = np.unique(np.floor((np.arctan2(y - b, x - a) / (2 * np.pi) + 0.5) * 36))
    return bool(deviation <= CIRCLE_LIKE * radius and len(directions) >= LEAST_ARC)


def measured(image: Image.Image, condition: Image.Image, prompt: str) -> Score:
    """The overlap of the disc in a picture with the condition's, where that is a circle and the prompt asks for one;
    otherwise how well the edges match."""
    if ROUND.search(prompt) and is_circle(condition):
        return Score("IoU", score(image, condition, prompt).iou)
    return Score("edge F1", edge_f1(image, condition))
