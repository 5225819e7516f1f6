"""The student's text in the grader's own code: taken from between the banners, and laid out for the sandbox."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Mapping, Sequence

from ..files.items import TASK_1
from ..handed_out.banners import TODO_FILES, fill, read_source
from ..handed_out.record import FINETUNE, Change, find_changes, read_handed_out
from ..handed_out.taken import oversized
from ..sandbox.limits import Outcome

ROOT = Path(__file__).resolve().parents[2]
# What the observation of the TODO places needs; the judges, which know what is right, stay outside.
OBSERVER = (
    "grading/__init__.py",
    "grading/checks/__init__.py",
    "grading/checks/observe.py",
    "grading/checks/places.py",
    "grading/checks/standins.py",
    "grading/handed_out/__init__.py",
    "grading/handed_out/banners.py",
)
NOT_CODE = ("__pycache__", "*.ipynb", "runs", ".*")


def outside_changes(task_1: Path) -> tuple[Change, ...]:
    """What of the code was changed outside the banners. A missing copy of `finetune` is none: it is not used."""
    handed_out = read_handed_out()
    changes, small = [], {}
    for name, text in handed_out.items():
        path = task_1.parent / name if name.startswith(f"{TASK_1}/") else task_1 / name
        problem = oversized(path) if path.is_file() else None
        if problem:
            changes.append(Change(name, f"{name} {problem}: copy what was handed out and fill it in."))
        else:
            small[name] = text
    changes += find_changes(task_1, task_1 / FINETUNE, small)
    return tuple(change for change in changes if change.name != FINETUNE)


def lay_out(folder: Path, parts: Mapping[str, str]) -> Path:
    """Copies the code into `folder`, readable by everyone, with the student's texts in it; the folder of Task 1.

    Raises:
        BannerError: if a text has a banner in it.
    """
    ignore = shutil.ignore_patterns(*NOT_CODE)
    for name in (TASK_1, FINETUNE):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in OBSERVER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, todos in TODO_FILES.items():
        path = folder / TASK_1 / name
        path.write_bytes(fill(read_source(path), {todo: parts[todo] for todo in todos}).encode("utf-8"))
    make_readable(folder)
    return folder / TASK_1


def make_readable(folder: Path) -> None:
    """For everyone, and writable for the owner only, whatever the modes of the files were that it was copied from."""
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(folder)], check=True)


def how_it_ended(outcome: Outcome) -> str:
    """A sentence without its beginning "the program ..." about a run that did not succeed."""
    if outcome.limit:
        return f"was stopped, as {outcome.limit}"
    said = last_words(outcome.tail)
    how = f"by signal {outcome.exit_code - 128}" if outcome.exit_code > 128 else f"with status {outcome.exit_code}"
    return f"ended {how}" + (f" ({said})" if said else "")


def last_words(tail: str) -> str:
    """The last line that says something, such as an exception's."""
    lines: Sequence[str] = [line.strip() for line in tail.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines else ""
