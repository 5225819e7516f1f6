"""Types for argparse's numbers and switches: what no program can work with is refused at once, in a sentence."""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Callable

# Of so many pictures a loss is hardly surer than of more: noise and timesteps are the same at every measurement.
MOST_HELD_OUT = 256
# Nothing here is counted further: with a few zeros too many a batch, say, would be waited for in vain.
MOST = 10**9


def number(
    kind: type,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
) -> Callable[[str], float]:
    """A type for `add_argument`: an int or a float (`kind`) within these limits, never infinite and never not a number.

    The type raises ArgumentTypeError, of which argparse makes the message of the flag.
    """
    limits = {"at least": at_least, "more than": above, "at most": at_most, "a multiple of": multiple_of}
    parts = [f"{words} {limit}" for words, limit in limits.items() if limit is not None]
    wanted = ", ".join(["a whole number" if kind is int else "a finite number", *parts])

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            # Fails every comparison below, as do "nan" and "inf", which `float` takes.
            value = math.nan
        fits = (
            -math.inf < value < math.inf
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (multiple_of is None or value % multiple_of == 0)
        )
        if not fits:
            raise ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value

    return parse


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type that also takes "none": the flag is off, whatever a preset says."""
    return lambda text: None if text.lower() == "none" else kind(text)


def switch(text: str) -> bool:
    """The type of a flag that is on or off: yes or no. Raises ArgumentTypeError."""
    if text.lower() not in ("yes", "no"):
        raise ArgumentTypeError(f"must be yes or no, not {text!r}")
    return text.lower() == "yes"


def name_or_path(text: str) -> str:
    """The type of a flag that takes a folder or file, or a name of the hub: a home's `~`, which shells leave as it is
    in `--flag=~/folder`, is not to become a folder of that name."""
    return os.path.expanduser(text)


def file_path(text: str) -> Path:
    return Path(name_or_path(text))


positive_int = number(int, at_least=1, at_most=MOST)
natural_int = number(int, at_least=0, at_most=MOST)
finite_float = number(float)
positive_float = number(float, above=0)
natural_float = number(float, at_least=0)
share = number(float, at_least=0, at_most=1)
part_above_none = number(float, above=0, at_most=1)
split_share = number(float, above=0, at_most=0.9)
seed_int = number(int, at_least=0, at_most=2**32 - 1)  # NumPy takes no other
# A sampler that is asked for more steps than there are timesteps takes one twice, and draws what is not finite.
sampling_steps = number(int, at_least=1, at_most=1000)
picture_size = number(int, at_least=8, at_most=2**14, multiple_of=8)  # px; Stable Diffusion makes 1 latent of 8
