"""The paired banner lines `######## TODO (N) ########`, and the text that stands between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

# The files with TODO places, as they are called in the folder of Task 1, and the places of each, from top to bottom.
TODO_FILES = {
    "diffusion/controlnet.py": ("1", "2", "3"),
    "diffusion/unets/unet_2d_condition.py": ("4-1", "4-2"),
}
TODOS = tuple(todo for todos in TODO_FILES.values() for todo in todos)
BANNER = re.compile(r"^([ \t]*)#{8} TODO \(([^()\n]*)\) #{8}[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
DAMAGED_BANNER = re.compile(r"^[ \t]*#{4,}.*TODO.*$", re.MULTILINE | re.IGNORECASE)


class BannerError(ValueError):
    """The banner lines of a file are not the pairs that they must be; the message names the line."""


@dataclass(frozen=True)
class Place:
    """Where the text of a TODO starts and ends in its file, and how far its banners are indented."""

    start: int
    end: int
    indent: str


def line_number(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def damaged(source: str) -> str:
    """A half-sentence about the first line that looks like a banner and is none, or nothing."""
    whole = {banner.start() for banner in BANNER.finditer(source)}
    for line in DAMAGED_BANNER.finditer(source):
        if line.start() not in whole:
            return f" (line {line_number(source, line.start())} looks like a damaged banner: {line[0].strip()!r})"
    return ""


def find_places(source: str, todos: Sequence[str] = ()) -> dict[str, Place]:
    """The places of a file by TODO number.

    Args:
        todos: these must all be there.

    Raises:
        BannerError: if a banner has no partner, is there more than twice, or stands inside another pair, or if one of
            `todos` is missing.
    """
    places: dict[str, Place] = {}
    opening = None
    for banner in BANNER.finditer(source):
        todo, line = banner[2], line_number(source, banner.start())
        if opening is None:
            if todo in places:
                raise BannerError(f"Line {line}: TODO ({todo}) has more than its two banner lines.")
            opening = banner
        elif todo == opening[2]:
            places[todo] = Place(opening.end(), banner.start(), opening[1])
            opening = None
        else:
            raise BannerError(
                f"Line {line}: a banner of TODO ({todo}) stands after only one banner of TODO ({opening[2]}): "
                f"the second one is missing, or the two places overlap{damaged(source)}."
            )
    if opening is not None:
        line = line_number(source, opening.start())
        raise BannerError(f"Line {line}: TODO ({opening[2]}) has no second banner line{damaged(source)}.")
    for todo in todos:
        if todo not in places:
            raise BannerError(f"The two banner lines of TODO ({todo}) are missing{damaged(source)}.")
    return places


def extract(source: str, todos: Sequence[str] = ()) -> dict[str, str]:
    """The texts between the banners by TODO number, to the byte. Arguments and errors are `find_places`'."""
    return {todo: source[place.start : place.end] for todo, place in find_places(source, todos).items()}


def fill(source: str, parts: dict[str, str]) -> str:
    """The source with the given texts between its banners; places that `parts` does not name stay as they are.

    Raises:
        BannerError: for banners that are not pairs, for a part without a place, and for a part that has banners in it.
    """
    places = find_places(source, tuple(parts))
    for todo, place in sorted(places.items(), key=lambda item: item[1].start, reverse=True):
        if todo in parts:
            if BANNER.search(parts[todo]):
                raise BannerError(f"The text for TODO ({todo}) has a banner line in it.")
            end = "" if not parts[todo] or parts[todo].endswith("\n") else "\n"
            source = source[: place.start] + parts[todo] + end + source[place.end :]
    return source


def read_source(path: Path) -> str:
    """A file as it is, line ends included.

    Raises:
        BannerError: if it is missing or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BannerError(f"{path} is missing.") from None
    except UnicodeDecodeError:
        raise BannerError(f"{path} is not UTF-8 text.") from None


def read_parts(task_1: Path) -> dict[str, str]:
    """The five texts of a folder of Task 1 by TODO number.

    Raises:
        BannerError: for a file that is missing or whose banners are damaged; the message names the file.
    """
    parts: dict[str, str] = {}
    for name, todos in TODO_FILES.items():
        source = read_source(task_1 / name)
        try:
            parts.update(extract(source, todos))
        except BannerError as error:
            raise BannerError(f"{name}: {error} Restore the banner lines as they were handed out.") from None
    return {todo: parts[todo] for todo in TODOS}
