"""The paired banner lines `######## TODO (N) ########`, and the text that stands between them.

Students add a word to a banner, lose a `#`, or write it in small letters: what counts is a line that is a comment and
says TODO (N). Where both banners are there as they were handed out, other comments that say so are just comments.
"""

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
BANNER = "######## TODO ({}) ########"
COMMENT = re.compile(r"^([ \t]*)(#.*)(?:\n|\Z)", re.MULTILINE)
# How a comment may name a place, as strictly as a banner that was handed out, less so, as loosely as a note, and with
# more before it: an editor that comments out puts "# " there. A Korean keyboard writes wide brackets and digits, some
# programs make a dash of a hyphen, and editors know "TODO:".
NAME = r"TODO\s*(?:[:：]\s*)?[(（\[]\s*(\d)\s*(?:[-_.\u2010-\u2015\u2212－]\s*(\d)\s*)?[)）\]]"
STRICTLY = re.compile(r"#{8} TODO \((\d)(?:-(\d))?\) #{8}\s*")
KINDS = (
    STRICTLY,
    *(re.compile(rf"{start}{NAME}.*", re.IGNORECASE) for start in (r"####.*?\b", r"#+\s*", r"#.*?\b")),
)
DAMAGED = re.compile(r"####.*TODO.*", re.IGNORECASE)


class BannerError(ValueError):
    """The banner lines of a file are not the pairs that they must be; the message names the line."""


class UnreadableSource(BannerError):
    """A file of code is not there, or no text; `what` is half a sentence that follows its name and says what to do."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}.")
        self.what = what


@dataclass(frozen=True)
class Banner:
    """A comment that names a TODO: its line in the file, its first and last position there, and its indentation.

    `kind` is 0 for a banner as it was handed out, more for one that is less like it.
    """

    todo: str
    kind: int
    line: int
    start: int
    end: int
    indent: str


@dataclass(frozen=True)
class Place:
    """The pair of banners of a TODO; its text is what stands between them."""

    opening: Banner
    closing: Banner

    @property
    def start(self) -> int:
        return self.opening.end

    @property
    def end(self) -> int:
        return self.closing.start

    @property
    def indent(self) -> str:
        return self.opening.indent


def find_banners(source: str) -> list[Banner]:
    """All comments of a file that name a TODO, from top to bottom."""
    found = []
    for comment in COMMENT.finditer(source):
        for kind, pattern in enumerate(KINDS):
            match = pattern.fullmatch(comment[2])
            if match:
                todo = "-".join(str(int(digit)) for digit in match.groups() if digit)
                line = source.count("\n", 0, comment.start()) + 1
                found.append(Banner(todo, kind, line, comment.start(), comment.end(), comment[1]))
                break
    return found


def damaged(source: str) -> str:
    """A half-sentence about the first line that looks like a banner and names no TODO, or nothing."""
    for comment in COMMENT.finditer(source):
        if DAMAGED.fullmatch(comment[2]) and not any(pattern.fullmatch(comment[2]) for pattern in KINDS):
            line = source.count("\n", 0, comment.start()) + 1
            return f" (line {line} looks like a damaged banner: {comment[2].strip()[:80]!r})"
    return ""


def find_place(todo: str, banners: Sequence[Banner], needed: bool, source: str) -> Place | None:
    """The pair of a TODO: that of the strictest kind of which there are two.

    Raises:
        BannerError: if there are more than two, or fewer where they are `needed` or one is as it was handed out.
    """
    like: list[Banner] = []
    for kind in range(len(KINDS) if needed else 1):
        like = [banner for banner in banners if banner.todo == todo and banner.kind <= kind]
        if len(like) == 2:
            return Place(*like)
        if len(like) > 2:
            raise BannerError(f"Line {like[2].line}: TODO ({todo}) has more than its two banner lines.")
    if like:
        raise BannerError(f"Line {like[0].line}: TODO ({todo}) has no second banner line{damaged(source)}.")
    if needed:
        raise BannerError(f"The two banner lines of TODO ({todo}) are missing{damaged(source)}.")
    return None


def find_places(source: str, todos: Sequence[str] = ()) -> dict[str, Place]:
    """The places of a file by TODO number, from top to bottom.

    Args:
        todos: these must all be there. Others count only where their banners are as they were handed out.

    Raises:
        BannerError: if a banner has no partner, is there more than twice, or stands inside another pair, or if one of
            `todos` is missing.
    """
    banners = find_banners(source)
    names = dict.fromkeys([*todos, *(banner.todo for banner in banners)])
    found = {todo: find_place(todo, banners, todo in todos, source) for todo in names}
    places = sorted(((todo, place) for todo, place in found.items() if place), key=lambda item: item[1].start)
    for (before, above), (todo, place) in zip(places, places[1:]):
        if place.opening.start < above.closing.start:
            raise BannerError(
                f"Line {place.opening.line}: a banner of TODO ({todo}) stands after only one banner of "
                f"TODO ({before}): the second one is missing, or the two places overlap."
            )
    return dict(places)


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
            if any(banner.kind == 0 for banner in find_banners(parts[todo])):
                raise BannerError(f"The text for TODO ({todo}) has a banner line in it.")
            end = "" if not parts[todo] or parts[todo].endswith("\n") else "\n"
            source = source[: place.start] + parts[todo] + end + source[place.end :]
    return source


def emptied(source: str, todos: Sequence[str]) -> str:
    """The source with nothing between the banners of `todos`, and these as they were handed out.

    Raises:
        BannerError: for banners that are not pairs, or missing.
    """
    places = find_places(source, todos)
    for todo in sorted(todos, key=lambda todo: places[todo].start, reverse=True):
        place = places[todo]
        lines = "".join(f"{banner.indent}{BANNER.format(todo)}\n" for banner in (place.opening, place.closing))
        source = source[: place.opening.start] + lines + source[place.closing.end :]
    return source


def read_source(path: Path) -> str:
    """A file as it is, line ends included.

    Raises:
        UnreadableSource: if it is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UnreadableSource(path, "is missing: copy it from what was handed out") from None
    except OSError as error:
        raise UnreadableSource(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnreadableSource(path, "is not UTF-8 text: store it as UTF-8 in your editor") from None


def read_code(path: Path) -> str:
    """A file as Python reads it: without a mark of UTF-8 at its beginning, and with one kind of line ends.

    Raises:
        UnreadableSource: as `read_source`.
    """
    source = read_source(path)
    return source[source.startswith("\ufeff") :].replace("\r\n", "\n").replace("\r", "\n")


def read_parts(task_1: Path) -> dict[str, str]:
    """The five texts of a folder of Task 1 by TODO number.

    Raises:
        BannerError: for a file that is missing or whose banners are damaged; the message names the file.
    """
    parts: dict[str, str] = {}
    for name, todos in TODO_FILES.items():
        try:
            parts.update(extract(read_code(task_1 / name), todos))
        except UnreadableSource as error:
            raise BannerError(f"{name} {error.what}.") from None
        except BannerError as error:
            raise BannerError(f"{name}: {error} Restore the banner lines as they were handed out.") from None
    return {todo: parts[todo] for todo in TODOS}
