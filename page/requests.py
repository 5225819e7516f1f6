"""What the browser asks for: checked, within limits, or refused in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Iterable

MOST_LETTERS = 500  # of a prompt; the text encoder reads fewer
MOST_STEPS = 50
MOST_GUIDANCE = 20.0
MOST_SCALE = 2.0
LAST_SEED = 2**32 - 1
# Whose guess for the empty prompt guidance compares with, as evaluate.py's --unconditional has it, or the pipeline's
# `guess_mode`, which is the base's too; and what the page calls it.
UNCONDITIONAL = {"controlnet": "ControlNet's", "base": "the base's", "guess_mode": "the base's, gently (guess mode)"}


class Refused(ValueError):
    """What was asked for is not done; the message is for whoever asked."""


@dataclass(frozen=True)
class Settings:
    """How a picture is drawn.

    `start` and `end`: the part of the steps, within 0..1, in which ControlNet is heard. `unconditional`: one of those
    above.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 12
    guidance: float = 3.0
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    unconditional: str = "controlnet"


def checked(
    prompt: Any,
    negative_prompt: Any,
    seed: Any,
    steps: Any,
    guidance: Any,
    scale: Any = 1.0,
    start: Any = 0.0,
    end: Any = 1.0,
    unconditional: Any = "controlnet",
) -> Settings:
    """The settings, whatever came from the browser. Raises Refused."""
    settings = Settings(
        prompt=text("The prompt", prompt),
        negative_prompt=text("The negative prompt", negative_prompt),
        seed=whole("The seed", seed, 0, LAST_SEED),
        steps=whole("The number of steps", steps, 1, MOST_STEPS),
        guidance=number("The guidance", guidance, 0, MOST_GUIDANCE),
        scale=number("The scale of ControlNet", scale, 0, MOST_SCALE),
        start=number("ControlNet's start", start, 0, 1),
        end=number("ControlNet's end", end, 0, 1),
        unconditional=one_of("What guidance compares with", unconditional, UNCONDITIONAL),
    )
    if settings.start >= settings.end:
        raise Refused(f"ControlNet starts at {settings.start:g} and ends at {settings.end:g}: it must start earlier.")
    return settings


def text(name: str, value: Any) -> str:
    """At most so many letters on one line; nothing at all is the empty text. Raises Refused."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"{name} must be a text.")
    if len(value) > MOST_LETTERS:
        raise Refused(f"{name} has {len(value):,} letters, and at most {MOST_LETTERS} are read: make it shorter.")
    # Half of a pair of surrogates is no letter, and tokenizers stop at it.
    return " ".join(value.encode("utf-8", "replace").decode("utf-8").split())


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Raises Refused for anything else."""
    if not isinstance(value, str) or value not in known:
        raise Refused(f"{name} must be one of {', '.join(known)}.")
    return value


def number(name: str, value: Any, least: float, most: float) -> float:
    """Raises Refused for what is no number from `least` to `most`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or not math.isfinite(value):
        raise Refused(f"{name} must be a number from {least:g} to {most:g}.")
    return float(value)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Raises Refused for what is no whole number from `least` to `most`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value != int(value):
        raise Refused(f"{name} must be a whole number from {least} to {most}.")
    return int(value)
