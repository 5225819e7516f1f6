"""What comes out: results.json in Gradescope's format, the pictures for the teacher, and the table of all hand-ins."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from ..files.items import TASK_1
from .numbers import Numbers
from .rubric import FULL, TASKS, Evidence, Score, all_loras
from .rules import BY_HAND, in_hundredths

ROOT = Path(__file__).resolve().parents[2]
ASK = "Please ask the teacher, who can start the grading again."


def write_atomically(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Writes a file that is the old one or the new one at every moment, readable by its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        # What a hand-in's code or report says may hold half a character, which no encoding has.
        with os.fdopen(handle, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:  # on a full disk, half a file would take what is left of it
        os.unlink(temporary)
        raise


def results_of(
    scores: Sequence[Score],
    numbers: Numbers,
    seconds: float,
    gaps: Sequence[str],
    iou: float | None = None,
    left: float = 1.0,
    of_reference: float | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        gaps: what is missing of the sandbox's isolation; only the teacher sees it.
        iou: what the leaderboard shows, if there is one.
        left: what the rules leave of the score, for points that are given by hand later.
        of_reference: what the leaderboard shows of those who handed in a recipe, for the contest.
    """
    rules = numbers.rules
    board = [{"name": "mean IoU of Task 1", "value": round(iou, 3)}] if rules.leaderboard and iou is not None else []
    if rules.leaderboard_seconds and of_reference is not None:
        board.append({"name": "seconds to IoU 0.90 (reference: 1)", "value": round(of_reference, 3), "order": "asc"})
    return {
        "score": sum(score.score for score in scores),
        "execution_time": round(seconds),
        "visibility": rules.visibility,
        "stdout_visibility": "hidden",
        "extra_data": {"gaps": list(gaps), "share_left": left},
        **({"leaderboard": board} if board else {}),
        "tests": [line_of(score, rules.visibility_at(score.name)) for score in scores],
    }


def line_of(score: Score, visibility: str) -> dict[str, Any]:
    return {
        "name": score.name,
        "score": score.score,
        "max_score": score.max_score,
        "status": "passed" if score.passed else "failed",
        "output": score.output,
        "output_format": "md",
        "visibility": visibility,
    }


def not_graded(reason: str, numbers: Numbers) -> dict[str, Any]:
    """The content of results.json where grading itself did not work: the points in it are none of the hand-in's."""
    scores = [Score(name, 0.0, FULL, False, f"This could not be graded: {reason} {ASK}") for name in TASKS]
    results = {**results_of(scores, numbers, 0, ()), "output": f"This could not be graded. {ASK}"}
    results["extra_data"]["graded"] = False
    return results


def quick_look(scores: Sequence[Score], numbers: Numbers, seconds: float, gaps: Sequence[str]) -> dict[str, Any]:
    """The content of results.json where only a quick look was taken: what is wrong, and no points."""
    results = {**results_of(scores, numbers, seconds, gaps), "output": "A quick look: no points."}
    results["extra_data"].update(graded=False, quick=True)
    return results


def gallery(evidence: Evidence, numbers: Numbers) -> list[dict[str, Any]]:
    """Rows of pictures for the teacher's page: a title, a text and for each picture its caption and its PNG file."""
    rows = []
    data = ROOT / TASK_1 / "data"
    prompts = json.loads((data / "test_prompts.json").read_text())
    alignment = evidence.alignment
    for i, (picture, iou) in enumerate(zip(alignment.pictures, alignment.ious) if alignment else ()):
        condition = (data / "test_conditions" / f"{i}.png").read_bytes()
        pictures = {"condition": condition, f"generated: IoU {iou:.2f}": picture}
        rows.append(picture_row("Task 1", prompts[str(i)], pictures))
    drawn = {name: lora.pictures for name, lora in all_loras(evidence).items() if lora.pictures}
    for i, plain in enumerate(evidence.plain_pictures):
        pictures = {"without LoRA": plain, **{name: shown[i] for name, shown in drawn.items()}}
        rows.append(picture_row("Task 2", numbers.lora_prompts[i], pictures))
    return rows


def picture_row(title: str, text: str, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    shown = [{"caption": name, "png": base64.b64encode(data).decode()} for name, data in pictures.items()]
    return {"title": title, "text": text, "pictures": shown}


@dataclass(frozen=True)
class Marks:
    """The points of a hand-in with those given by hand, each less what the rules take off; their sum is the total."""

    task_1: float
    task_2: float
    task_1_1: float | None
    report: float | None
    total: float
    by_hand: str


def marks(result: Mapping[str, Any], given: Mapping[str, float]) -> Marks | None:
    """The points of a graded hand-in; None for one that was not graded.

    Points by hand are taken for the full ones, so what the rules take off the score is taken off them, too. A score is
    never below zero.
    """
    if not is_graded(result):
        return None
    left = share_left(result)
    task_1, proposed = (test["score"] for test in tasks_of(result))
    own = {field: in_hundredths(value * left) for field, value in given.items()}
    task_2 = own.get("task_2", proposed)
    total = max(0.0, in_hundredths(task_1 + task_2 + own.get("task_1_1", 0.0) + own.get("report", 0.0)))
    instead = {"task_2": f" in place of {proposed:g}"}
    words = "; ".join(f"{BY_HAND[field]}: {own[field]:g}{instead.get(field, '')}" for field in BY_HAND if field in own)
    return Marks(task_1, task_2, own.get("task_1_1"), own.get("report"), total, words)


def share_left(result: Mapping[str, Any]) -> float:
    """What the rules leave of the score."""
    return result["extra_data"].get("share_left", 1.0)


COLUMNS = ("hand-in", "total", "task 1", "task 2", "task 1-1", "report", "what is wrong", "by hand")


def write_table(
    path: Path, results: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Writes grades.csv: for each hand-in the total, each task's points, and the reason why one is not full.

    It begins with UTF-8's mark, as Excel reads other letters than English ones only then. One that was not graded has
    no points.

    Args:
        given: the points by hand, by hand-in and field.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for name, result in results.items():
        own = marks(result, (given or {}).get(name, {}))
        numbers = (own.total, own.task_1, own.task_2, own.task_1_1, own.report) if own else (None,) * 5
        shown = ["" if number is None else f"{number:g}" for number in numbers]
        words = own.by_hand if own else ""
        writer.writerow([plain_text(name), *shown, plain_text(wrong(result["tests"])), words])
    write_atomically(path, text.getvalue(), "utf-8-sig")


def plain_text(text: str) -> str:
    """A text with an apostrophe before it if a spreadsheet would take it for a formula, wide characters included."""
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if start and start in "=+-@" else text


def is_graded(result: Mapping[str, Any]) -> bool:
    """Whether its points say something about the hand-in."""
    return result["extra_data"].get("graded", True)


def in_short(result: Mapping[str, Any]) -> str:
    """The points, or why there are none."""
    if result["extra_data"].get("quick"):
        return f"a quick look, no points: {wrong(result['tests']) or 'nothing is wrong so far'}"
    return f"{result['score']:g} points" if is_graded(result) else first_line(result["tests"][0]["output"])


def tasks_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [test for test in result["tests"] if test["name"] in TASKS]


def wrong(tests: Iterable[Mapping[str, Any]]) -> str:
    """The first lines about what is not as it should be."""
    return "; ".join(f"{test['name']}: {first_line(test['output'])}" for test in tests if test["status"] != "passed")


def first_line(text: str) -> str:
    return next((line.strip("-* ") for line in text.splitlines() if line.strip("-* ")), "")
