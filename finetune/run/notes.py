"""What a user should know of their data while it is read, said once."""

from __future__ import annotations

import mmap
import os
import zlib
from typing import Callable, Sequence

# What was said, one byte each at a place that its text decides: workers that are forked share it, also those of the
# next epoch.
_said = mmap.mmap(-1, 2**20)


def say_once(text: str, kind: str | None = None) -> None:
    """Prints `text` if nothing of its `kind` (by default: the text itself) was said; one of several processes does."""
    # Two texts at one place in a million bytes would cost the second: a note, and no error.
    place = zlib.crc32((kind or text).encode(errors="replace")) % len(_said)
    if os.environ.get("RANK", "0") == "0" and not _said[place]:
        _said[place] = 1
        print(f"Note: {text}", flush=True)


def some(names: list[str], limit: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def say_empty(texts: Sequence[str], where: Callable[[int], str], path: str) -> None:
    """Says which samples of a folder or a data set have no text."""
    empty = [where(index) for index, text in enumerate(texts) if not text.strip()]
    if empty:
        say_once(f"{len(empty)} texts of {path} are empty, which trains on the empty prompt: {some(empty)}.")
