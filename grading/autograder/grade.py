"""Grades one hand-in: finds out everything that the rubric asks for, and gives the points."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping, Sequence

from ..contest.judge import RECIPE, Entered, enter
from ..files.archive import ArchiveError, unpack
from ..files.items import Items, find_items
from ..files.report_pdf import MAX_PAGES, inspect_report
from ..grades.numbers import Numbers
from ..grades.rubric import NOT_TRAINED, Alignment, Evidence, Lora, Score, Todos, grade
from ..handed_out.banners import BannerError
from ..handed_out.record import added_code
from ..handed_out.taken import take_texts
from .alignment import Shared, evaluate, train
from .loras import judge_files, judge_loras
from .proof.plain import unusual
from .proof.prove import Reference, prove
from .student_code import outside_changes, read_handed_out
from .todos import check_todos

WEIGHTS = "controlnet.safetensors"


@dataclass(frozen=True)
class Judges:
    """What takes time: running the student's texts, training with them, and drawing with the LoRAs.

    `todos` and `alignment` get the texts by TODO number, `loras` the files by name, `contest` the recipe's file.
    """

    todos: Callable[[Mapping[str, str]], Todos]
    alignment: Callable[[Mapping[str, str]], Alignment]
    loras: Callable[[Mapping[str, Path]], tuple[Mapping[str, Lora], tuple[bytes, ...]]]
    contest: Callable[[Path], Entered] = lambda file: Entered(None, f"{file.name} was not tried.")


def real_judges(
    shared: Shared,
    numbers: Numbers,
    hidden: Sequence[Path],
    work: Path,
    seconds: float,
    reference: Reference | None = None,
    plain: Path | None = None,
) -> Judges:
    """The judges of the assignment.

    Args:
        reference: by which a hand-in may be proved right; None: all are trained to their end.
        plain: the pictures that the embedded base draws without a LoRA, if they are kept.
        hidden: what the student's code must not see.
        work: an empty folder.
        seconds: the time, by the clock, after which the grader's own programs are given up.
    """

    until = time.monotonic() + seconds

    def contest(file: Path) -> Entered:
        return enter(file, until - time.monotonic(), numbers.memory_mib)

    def align(parts: Mapping[str, str]) -> Alignment:
        weights, why = work / WEIGHTS, ""
        if reference:
            known = prove(parts, shared, reference, numbers, hidden, weights, unusual(parts))
            if isinstance(known, Alignment):
                return known
            why = known
        failed = train(parts, shared, numbers, numbers.train_seconds, hidden, weights)
        return replace(failed or evaluate(weights, shared, numbers, seconds, work), why_whole=why)

    def loras(files: Mapping[str, Path]) -> tuple[Mapping[str, Lora], tuple[bytes, ...]]:
        folder = work / "loras"
        folder.mkdir()
        return judge_loras(files, shared, numbers, seconds, folder, plain)

    return Judges(lambda parts: check_todos(parts, numbers, hidden), align, loras, contest)


def quick_judges(numbers: Numbers, hidden: Sequence[Path]) -> Judges:
    """Those that take a moment: the TODO places, and what the LoRA files alone say. Nothing is trained or drawn."""
    return Judges(
        lambda parts: check_todos(parts, numbers, hidden),
        lambda parts: Alignment(NOT_TRAINED),
        lambda files: (judge_files(files)[0], ()),
    )


def missing_items(items: Items) -> dict[str, str]:
    """The sentences about what is missing, by item."""
    found = {"report": items.report, "code": items.task_1, "lora_1": items.lora_1, "lora_2": items.lora_2}
    return dict(zip([name for name, path in found.items() if path is None], items.problems))


def look_at_report(report: Path | None, evidence: Evidence) -> Evidence:
    """A report that nobody can read is missing; one that is too long is there."""
    if report is None:
        return evidence
    seen = inspect_report(report)
    if seen.ok:
        return evidence
    if seen.pages and seen.pages > MAX_PAGES:
        return replace(evidence, report=seen.problem)
    return replace(evidence, missing={**evidence.missing, "report": f"{seen.problem} It counts as missing."})


def look_at_code(task_1: Path | None, evidence: Evidence, judges: Judges, numbers: Numbers) -> Evidence:
    if task_1 is None:
        return evidence
    added = [
        f"{name} is a file of the student's own; it is not used." for name in added_code(task_1, read_handed_out())
    ]
    evidence = replace(evidence, changes=outside_changes(task_1), notes=(*evidence.notes, *added[:10]))
    try:
        parts = take_texts(task_1, numbers.text_bytes)
    except BannerError as error:
        return replace(evidence, unusable=str(error))
    todos = judges.todos(parts)
    if todos.stuck:
        places = ", ".join(f"({todo})" for todo in todos.stuck)
        stopped = Alignment(f"TODO {places} does not run to its end, so the training was not even started.")
        return replace(evidence, todos=todos, alignment=stopped)
    return replace(evidence, todos=todos, alignment=judges.alignment(parts))


def look_at_recipe(task_1: Path | None, evidence: Evidence, judges: Judges, numbers: Numbers) -> Evidence:
    """For the leaderboard, if there is one for it; it changes no points."""
    if not numbers.rules.leaderboard_seconds or task_1 is None or not (task_1 / RECIPE).is_file():
        return evidence
    entered = judges.contest(task_1 / RECIPE)
    return replace(
        evidence, of_reference=entered.of_reference, notes=(*evidence.notes, f"The contest: {entered.words}")
    )


def look_at(folder: Path, judges: Judges, numbers: Numbers, days_late: int = 0) -> Evidence:
    """Everything about an unpacked hand-in."""
    items = find_items(folder)
    extra = [f"{name} is no part of a hand-in, and is not looked at." for name in items.extra[:10]]
    evidence = look_at_report(items.report, Evidence(missing_items(items), notes=tuple(extra), days_late=days_late))
    evidence = look_at_code(items.task_1, evidence, judges, numbers)
    files = {name: path for name, path in (("lora_1", items.lora_1), ("lora_2", items.lora_2)) if path}
    loras, plain = judges.loras(files)
    return look_at_recipe(items.task_1, replace(evidence, loras=loras, plain_pictures=plain), judges, numbers)


def grade_hand_in(
    path: Path,
    judges: Judges,
    numbers: Numbers,
    work: Path,
    days_late: int = 0,
    points: Callable[[Evidence, Numbers], list[Score]] = grade,
) -> tuple[Evidence, list[Score]]:
    """Grades a zip, or the folder that one was unpacked into.

    Args:
        work: a folder to unpack into, which nobody else can read.
        points: by which rubric; that of a quick look gives none.

    Raises:
        GraderError, SandboxError, TimeoutError: if something that is no fault of the hand-in stops the grading.
    """
    try:
        folder = unpack(path, work / "hand_in")
    except ArchiveError as error:
        evidence = Evidence({}, unreadable=str(error))
    else:
        evidence = look_at(folder, judges, numbers, days_late)
    return evidence, points(evidence, numbers)
