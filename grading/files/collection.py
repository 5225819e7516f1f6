"""Finds the hand-ins in a folder, however a teacher, a learning platform or Gradescope has left them there.

A hand-in is an archive, or a folder with items of the assignment in it. Whatever else there is gets a reason: nothing
is left out without a word.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Iterable

from .archive import ARCHIVES, READABLE, is_dropping
from .items import LORAS, TASK_1

MAX_DEPTH = 12
# Reasons, which go on from "not graded, as ".
LEFTOVER = "a program or an operating system has left it behind"
LINK = "it is a link, which could lead anywhere"
DEEP = f"it lies more than {MAX_DEPTH} folders deep"
FORBIDDEN = "it may not be read"
SPECIAL = "it is neither a plain file nor a folder"
OTHER_ARCHIVE = f"only archives that end in {', '.join(READABLE)} are read: ask for one, or pack it again"
FILE = "it is neither an archive nor a folder with items of a hand-in"
STRAY = "they are items of a hand-in that lie among others: put them into a folder of their own, named as theirs are"
NOTHING = "there is no hand-in in it, neither an archive nor items of one"


def no_hand_in(path: Path, depth: int) -> str | None:
    """Why something in a folder is no hand-in and has none in it, if that can be told from outside."""
    if is_dropping(PurePosixPath(path.name)):
        return LEFTOVER
    if path.is_symlink():
        return LINK
    if path.is_dir():
        if depth >= MAX_DEPTH:
            return DEEP
        return None if os.access(path, os.R_OK | os.X_OK) else FORBIDDEN
    if not path.is_file():
        return SPECIAL
    return OTHER_ARCHIVE if path.name.lower().endswith(ARCHIVES) and not is_readable_archive(path) else None


def is_readable_archive(path: Path) -> bool:
    return path.name.lower().endswith(READABLE) and path.is_file()


def strays(folder: Path, items: list[str]) -> list[str]:
    """Which of these items in a folder belong to no hand-in: all, if there are several hand-ins beside them.

    One archive unpacked where all lie would otherwise make one hand-in of the whole course.
    """
    others = [path for path in folder.iterdir() if path.name not in items and no_hand_in(path, 0) is None]
    beside = [path for path in others if is_readable_archive(path) or (path.is_dir() and search(path, 1)[0])]
    return items if len(beside) > 1 else []


def search(folder: Path, depth: int = 0) -> tuple[list[Path], dict[Path, str]]:
    """The hand-ins in a folder, or it itself; and the reasons why other things in it are none."""
    items = [name for name in (TASK_1, *LORAS) if (folder / name).is_dir()]
    astray = strays(folder, items) if items and depth == 0 else []
    if items and not astray:
        return [folder], {}
    hand_ins: list[Path] = []
    left_out = {folder / name: STRAY for name in astray}
    files = []
    for path in sorted(path for path in folder.iterdir() if path.name not in astray):
        reason = no_hand_in(path, depth)
        if reason:
            left_out[path] = reason
        elif path.is_dir():
            inside, beside = search(path, depth + 1)
            hand_ins += inside
            left_out.update(beside)
        elif is_readable_archive(path):
            hand_ins.append(path)
        else:
            files.append(path)
    if not hand_ins and set(left_out.values()) <= {LEFTOVER, NOTHING}:
        if any(path.suffix.lower() == ".pdf" for path in files):  # a report without all the rest
            return [folder], {}
        return [], {folder: NOTHING}
    return hand_ins, {**left_out, **dict.fromkeys(files, FILE)}


def plain_name(path: Path, top: Path) -> str:
    """What a thing is called below `top`, in letters that every program can write and no terminal obeys."""
    name = str(path.relative_to(top)) if path != top else top.resolve().name
    plain = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in plain)


def without_suffix(name: str) -> str:
    suffix = next((suffix for suffix in (".tar.gz", *READABLE) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def named(paths: Iterable[Path], top: Path) -> dict[str, Path]:
    """Each by a name of its own: without an archive's ending, unless another one is called so too."""
    full = {path: plain_name(path, top) for path in paths}
    short = {path: without_suffix(name) if path.is_file() else name for path, name in full.items()}
    often = Counter(short.values())
    found: dict[str, Path] = {}
    for path in full:
        name = short[path] if often[short[path]] == 1 else full[path]
        while name in found:
            name += "_"
        found[name] = path
    return found


def hand_ins(path: Path) -> dict[str, Path]:
    """The hand-ins at a path by name: one archive, one unpacked hand-in, or a folder with any number of them.

    Raises:
        FileNotFoundError: if there are none.
    """
    if path.is_file():
        return named([path], path.parent)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no {path}: name an archive, or a folder of hand-ins.")
    found, _ = search(path)
    if not found:
        raise FileNotFoundError(f"There are no hand-ins in {path}. {' '.join(left_out(path))}")
    return named(found, path)


def left_out(path: Path) -> list[str]:
    """What at a path is no hand-in, as a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for other, reason in (search(path)[1] if path.is_dir() else {}).items():
        by_reason.setdefault(reason, []).append(plain_name(other, path))
    return [f"Not graded, as {reason}: {', '.join(names)}." for reason, names in by_reason.items()]
