"""Finds the items of a hand-in: in the student's repository with its run folders, or in an unpacked zip."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

from finetune.run.settings import read_run

from ..files.archive import find_items
from ..files.items import LORAS, TASK_1, WEIGHTS_FILE
from ..handed_out.record import FINETUNE, ROOT

RUNS = Path("runs")
# Where the trainings of Task 2 put their results: the first pattern that finds any counts.
LORA_RUNS = {"lora_1": ("lora-custom", "lora-*"), "lora_2": ("dreambooth-cat", "dreambooth-*")}
LORA_SCRIPTS = {"lora_1": "train_lora_custom.sh", "lora_2": "train_dreambooth_lora.sh"}


class Missing(Exception):
    """An item is not found; the message is a sentence that says how to get it."""


@dataclass(frozen=True)
class Line:
    """One line of what is shown: `mark` is "right", "WRONG" or "note"; `details` are printed below it, indented."""

    mark: str
    item: str
    text: str
    details: str = ""

    def __str__(self) -> str:
        details = textwrap.indent(self.details.strip("\n"), " " * 9)
        return f"{self.mark:5}  {self.item}: {self.text}" + (f"\n{details}" if details else "")


@dataclass(frozen=True)
class Sources:
    """Where the items of a hand-in are, None for what is missing, and the lines about what the search met.

    `finetune` is the folder that Task 1 runs with, there or not.
    """

    student_id: str
    task_1: Path | None
    finetune: Path
    loras: Mapping[str, Path | None]
    report: Path | None
    lines: tuple[Line, ...]


def find_task_1(given: Path | None) -> Path:
    folder = given or Path(TASK_1)
    if not folder.is_dir():
        raise Missing(f"There is no folder {folder}: start this in the repository's root, or name yours with --task-1.")
    return folder


def find_lora(item: str, given: Path | None) -> Path:
    """The file that is given, or in the folder that is given, or the only one that a training left in `runs/`."""
    option = f"--{item.replace('_', '-')}"
    if given is not None:
        path = given / WEIGHTS_FILE if given.is_dir() else given
        if not path.is_file():
            raise Missing(f"There is no file {path}: correct {option}.")
        return require_finished(path, option)
    for pattern in LORA_RUNS[item]:
        found = sorted(RUNS.glob(f"{pattern}/{WEIGHTS_FILE}"))
        if len(found) == 1:
            return require_finished(found[0], option)
        if found:
            names = ", ".join(str(path.parent) for path in found)
            raise Missing(f"There are several LoRAs of {LORAS[item]} ({names}): choose one with {option}.")
        # Not the LoRA of another folder in place of the one that its script is still to make.
        if goes_on(RUNS / pattern):
            raise Missing(
                f"The training in {RUNS / pattern} is not finished: start it again, and it goes on; or name another "
                f"LoRA with {option}."
            )
    raise Missing(
        f"The LoRA of {LORAS[item]} is missing: train it (`cd task_2_lora && sh scripts/{LORA_SCRIPTS[item]}`), or "
        f"name its folder with {option}."
    )


def goes_on(folder: Path) -> bool:
    """Whether a training in a folder was started and is not finished."""
    run = read_run(folder)
    return run["settings"] is not None and run["finished"] is None


def require_finished(lora: Path, option: str) -> Path:
    """The file, unless a training in its folder goes on: then it is what an earlier one left there."""
    if goes_on(lora.parent):
        raise Missing(
            f"{lora} is not by the training in {lora.parent}, which is not finished: start that again, and it goes on; "
            f"or name another LoRA with {option}."
        )
    return lora


def training_of(lora: Path) -> str:
    """What it was trained on, as far as its run says so."""
    run = read_run(lora.parent)
    return f", trained for {run['finished']} steps on {run['settings']['data']['words']}" if run["finished"] else ""


def find_report(student_id: str, given: Path | None) -> Path:
    name = f"{student_id}.pdf"
    for path in (Path(name), RUNS / name) if given is None else (given,):
        if path.is_file():
            return path
    if given is not None:
        raise Missing(f"There is no file {given}: correct --report.")
    raise Missing(
        f"There is no {name} here or in {RUNS}/: make it with `python -m grading.report` (see its --help), or name "
        "yours with --report."
    )


def sources_here(
    student_id: str, task_1: Path | None, lora_1: Path | None, lora_2: Path | None, report: Path | None
) -> Sources:
    """The items in the current folder, or where the arguments say that they are."""
    lines: list[Line] = []

    def found(item: str, find: Callable[..., Path], *arguments: Any) -> Path | None:
        try:
            path = find(*arguments)
        except Missing as missing:
            lines.append(Line("WRONG", item, str(missing)))
            return None
        trained = training_of(path) if item in LORAS else ""
        lines.append(Line("", item, f"found at {path}{trained}."))
        return path

    code = found("code", find_task_1, task_1)
    own = code / FINETUNE if code else None  # what an earlier zip brought along
    return Sources(
        student_id,
        code,
        own if own and own.is_dir() else ROOT / FINETUNE,
        {item: found(item, find_lora, item, given) for item, given in (("lora_1", lora_1), ("lora_2", lora_2))},
        found("report", find_report, student_id, report),
        tuple(lines),
    )


def sources_in(folder: Path, student_id: str) -> Sources:
    """The items in an unpacked zip."""
    items = find_items(folder)
    lines = [Line("WRONG", "zip", problem) for problem in items.problems]
    lines += [Line("note", "zip", f"{name} is no part of a hand-in, and is not looked at.") for name in items.extra]
    if items.report and items.report.name != f"{student_id}.pdf":
        lines.append(Line("WRONG", "report", f"It must be named {student_id}.pdf, not {items.report.name}."))
    loras = {"lora_1": items.lora_1, "lora_2": items.lora_2}
    return Sources(student_id, items.task_1, folder / TASK_1 / FINETUNE, loras, items.report, tuple(lines))
