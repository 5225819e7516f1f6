"""Prints in the sample data's style, which several files of tests look at: each takes a fifth of a second to draw."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image

from tiny_sd.measures.lines_and_inks import true_print
from tiny_sd.pictures.icons import load_subjects


@lru_cache(maxsize=None)
def true_prints() -> dict[str, Image.Image]:
    """Twenty, flat and shaded, by what they show: things that are neither in the sample data nor what the measure of
    lines compares with.
    """
    some = list(load_subjects().items())[3::16][:20]
    return {subject: true_print("flat" if i % 2 else "shaded", name, seed=i) for i, (name, subject) in enumerate(some)}
