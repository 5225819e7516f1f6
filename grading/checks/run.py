"""Checks the five TODO places one by one, by what they do, and says what is wrong in words that help.

`check` runs a text in this process; a grader that must not trust it runs `grading.checks.observe` in another one, and
calls `judge` here.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

from ..handed_out.banners import TODO_FILES
from .observe import observe
from .problems import Note, explain_error
from .problems_copy import judge_from_unet
from .problems_residuals import judge_zero_convolved
from .problems_unet import judge_mid, judge_skips
from .problems_zero_convolution import judge_zero_convolution

FUNCTIONS = {
    "1": "zero_convolution",
    "2": "ControlNetModel.from_unet",
    "3": "ControlNetModel.forward",
    "4-1": "UNet2DConditionModel.forward, before the mid block",
    "4-2": "UNet2DConditionModel.forward, after the mid block",
}
# These can only fail too where gradients are switched off.
GRADIENT_CHECKS = ("computes a convolution", "lets gradients through")
MAX_MESSAGE = 2000  # characters
# Each yields pairs: a check's name, and what is wrong, a `Note`, or None.
JUDGES: dict[str, Callable[[int, dict[str, Any]], Iterator[tuple[str, str | None]]]] = {
    "1": judge_zero_convolution,
    "2": judge_from_unet,
    "3": judge_zero_convolved,
    "4-1": judge_skips,
    "4-2": judge_mid,
}


@dataclass(frozen=True)
class Result:
    """One check of one TODO; `message` is what is wrong, or a note about what passed, or empty."""

    todo: str
    name: str
    passed: bool
    message: str


def findings(todo: str, seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    if "error" in seen:
        yield "runs", explain_error(seen["error"])
        return
    found = JUDGES[todo](seed, seen)
    yield from (pair for pair in found if seen["gradients_on"] or pair[0] not in GRADIENT_CHECKS)
    problem = "gradients are switched off for the whole program, so nothing would learn: use `with torch.no_grad():`."
    yield "leaves gradients on", None if seen["gradients_on"] else problem


def judge(todo: str, seed: int, seen: dict[str, Any]) -> list[Result]:
    """The results of the checks of one TODO from what `observe` saw with the same seed. Runs no student's code."""
    try:
        found = list(findings(todo, seed, seen))
    except Exception as error:  # made by a process that ran the student's code: it can be anything
        found = [("can be judged", f"its results make no sense ({type(error).__name__}: {error}).")]
    return [
        Result(
            todo,
            name,
            problem is None or isinstance(problem, Note),
            "" if problem is None else shortened(f"TODO ({todo}): {problem}"),
        )
        for name, problem in found
    ]


def shortened(message: str) -> str:
    """What a table's cell and a reader take: names that the text chose may be of any length."""
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} …"


def check(todo: str, text: str, seed: int = 0) -> list[Result]:
    """Runs the text of one TODO by itself, in this process, and judges it."""
    return judge(todo, seed, observe(todo, text, seed))


def check_all(parts: dict[str, str], seed: int = 0) -> list[Result]:
    """Checks the texts by TODO number, each by itself, so that a wrong one is blamed on itself only."""
    return [result for todo, text in parts.items() for result in check(todo, text, seed)]


def report(results: Iterable[Result]) -> str:
    """A text with what is right and what is wrong, TODO by TODO."""
    results = list(results)
    lines = []
    for name, todos in TODO_FILES.items():
        for todo in todos:
            own = [result for result in results if result.todo == todo]
            if own:
                mark = "right" if all(result.passed for result in own) else "WRONG"
                lines.append(f"{mark}  TODO ({todo})  {name}, {FUNCTIONS[todo]}")
            for result in own:
                if result.message:
                    message = ("Note: " if result.passed else "") + result.message.partition(": ")[2]
                    lines.append(textwrap.fill(message, 100, initial_indent=" " * 7, subsequent_indent=" " * 7))
    return "\n".join(lines)
