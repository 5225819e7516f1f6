"""What was handed out, kept beside this file, to see whether anything outside the TODO places was changed since.

    python -m grading.handed_out    # for teachers, after a change of the code: keeps it as it is now

What nobody sees and Python does not mind is no change: line ends, blanks at the ends of lines, UTF-8's mark at the
beginning. All else that nobody sees is spelled out in the diff. Notebooks, pictures and data may change.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import json
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Mapping

from ..files.archive import PACK_AGAIN, is_dropping
from ..files.items import TASK_1
from .banners import TODO_FILES, BannerError, UnreadableSource, emptied, read_code

ROOT = Path(__file__).resolve().parents[2]
HANDED_OUT = Path(__file__).resolve().with_name("handed_out.json.gz")
FINETUNE = "finetune"
CODE_FILES = ("*.py", "*.sh")
MAX_DIFF_LINES = 40
# A file so many lines longer than it was is not compared line by line, as that would take too long.
MAX_MORE_LINES = 2000


@dataclass(frozen=True)
class Change:
    """A file that is not as it was handed out: a sentence that says what to do, and the lines in question, if any."""

    name: str
    problem: str
    diff: str = ""


def comparable(name: str, source: str) -> str:
    """A file's text with nothing in its TODO places. Raises BannerError for banners that are not as they must be."""
    todos = TODO_FILES.get(name.partition("/")[2], ()) if name.startswith(f"{TASK_1}/") else ()
    lines = emptied(source, todos).split("\n")
    return "\n".join(line.rstrip(" \t\f") for line in lines).rstrip("\n") + "\n"


def code_files(folder: Path) -> dict[str, Path]:
    """The files with code below a folder, by their names in it."""
    paths = {path for pattern in CODE_FILES for path in folder.rglob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {name: path for name, path in names.items() if not is_dropping(PurePosixPath(name))}


def current_code(root: Path = ROOT) -> dict[str, str]:
    """The comparable texts of all code that students must not change, by the files' names in the repository."""
    return {
        f"{folder}/{name}": comparable(f"{folder}/{name}", read_code(path))
        for folder in (TASK_1, FINETUNE)
        for name, path in code_files(root / folder).items()
    }


def write_handed_out(root: Path = ROOT, path: Path = HANDED_OUT) -> None:
    """Keeps the code of a repository as what is handed out. Raises BannerError for damaged banners."""
    text = json.dumps(current_code(root), indent=0, sort_keys=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_handed_out(path: Path = HANDED_OUT) -> dict[str, str]:
    return json.loads(gzip.decompress(path.read_bytes()))


def visible(line: str) -> str:
    """A line in which all that could not be told from something else, or not be seen, is written as Python escapes it.

    Plain characters stay, and those of scripts that look like no other, such as Hangul.
    """
    return "".join(
        character
        if character.isprintable() and (character.isascii() or unicodedata.east_asian_width(character) == "W")
        else character.encode("unicode_escape").decode()
        for character in line
    )


def diff(before: str, after: str) -> str:
    """The lines that differ, with a few around them, and not too many."""
    old, new = ([visible(line) for line in text.rstrip("\n").split("\n")] for text in (before, after))
    if len(new) > len(old) + MAX_MORE_LINES:
        return f"(it has {len(new)} lines in place of {len(old)})"
    lines = list(difflib.unified_diff(old, new, "handed out", "yours", n=2, lineterm=""))
    more = len(lines) - MAX_DIFF_LINES
    return "\n".join(lines[:MAX_DIFF_LINES] + ([f"... and {more} more lines"] if more > 0 else []))


def change_of(name: str, path: Path, before: str) -> Change | None:
    if not path.is_file():
        return Change(name, f"{name} is missing: copy it from what was handed out.")
    try:
        after = comparable(name, read_code(path))
    except UnreadableSource as error:
        return Change(name, f"{name} {error.what}.")
    except BannerError as error:
        return Change(name, f"{name}: {error} Restore the file's banners as they were handed out.")
    if after == before:
        return None
    problem = f"{name} is changed outside the TODO places: undo the change, or copy what was handed out and fill it in."
    return Change(name, problem, diff(before, after))


def find_changes(task_1: Path, finetune: Path | None, handed_out: Mapping[str, str]) -> list[Change]:
    """What is not as it was handed out in a folder of Task 1, and in the `finetune` that it runs with, if that counts.

    Files that were not handed out are no change; see `added_code`.
    """
    folders = {TASK_1: task_1}
    if finetune is not None and finetune.is_dir():
        folders[FINETUNE] = finetune
    changes = [
        change_of(name, folders[folder] / inside, before)
        for name, before in handed_out.items()
        for folder, _, inside in [name.partition("/")]
        if folder in folders
    ]
    if finetune is not None and FINETUNE not in folders:
        changes.append(
            Change(FINETUNE, f"{FINETUNE}/ is missing, without which Task 1 does not run alone: {PACK_AGAIN}.")
        )
    return [change for change in changes if change]


def added_code(task_1: Path, handed_out: Mapping[str, str]) -> list[str]:
    """The names of a student's own files of code in a folder of Task 1."""
    names = [name for name in code_files(task_1) if not name.startswith(f"{FINETUNE}/")]
    return [name for name in names if f"{TASK_1}/{name}" not in handed_out]


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.handed_out", description=__doc__.splitlines()[0])
    parser.parse_args()
    before = read_handed_out() if HANDED_OUT.exists() else {}
    try:
        write_handed_out()
    except (BannerError, OSError) as error:
        sys.exit(f"Error: {error}")
    after = read_handed_out()
    print(f"{len(after)} files are kept in {HANDED_OUT.relative_to(ROOT)} as what is handed out.")
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if before and changed:
        print(f"Changed: {', '.join(changed)}. If students have an earlier hand-out, tell them in CHANGES.md.")
