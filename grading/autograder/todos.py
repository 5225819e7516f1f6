"""Checks the student's TODO places: runs them in the sandbox, and judges out here what they did there."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

from ..grades.numbers import Numbers
from ..grades.rubric import Todos
from ..handed_out.banners import TODOS
from ..sandbox.limits import Outcome, SandboxError
from ..sandbox.sandbox import Sandbox
from .student_code import how_it_ended, lay_out

FOLDER = "observations"


class Judged(NamedTuple):
    """What is wrong with one text, and what is worth a note."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_todos(parts: Mapping[str, str], numbers: Numbers, hidden: Sequence[Path]) -> Todos:
    """What is wrong with each text.

    All are run in one process; those that look wrong then, or that it did not get to, each in a process of its own, so
    that none can be blamed on another.
    """
    judged, _ = run_and_judge(parts, TODOS, numbers.observe_seconds, numbers, hidden)
    stuck = []
    for todo in [todo for todo in TODOS if judged[todo].problems]:
        alone, ended = run_and_judge(parts, [todo], numbers.observe_one_seconds, numbers, hidden)
        judged[todo] = alone[todo]
        if not ended:
            stuck.append(todo)
    problems, notes = ({todo: one[i] for todo, one in judged.items()} for i in range(2))
    return Todos(problems, tuple(stuck), notes)


def run_and_judge(
    parts: Mapping[str, str], todos: Sequence[str], seconds: float, numbers: Numbers, hidden: Sequence[Path]
) -> tuple[dict[str, Judged], bool]:
    """What is found by TODO, and whether the program came to its end."""
    seed = secrets.randbelow(2**31)  # nobody knows the right results before
    with Sandbox(hidden) as sandbox:
        code = sandbox.folder / "code"
        task_1 = lay_out(code, parts)
        arguments = ["--task-1", str(task_1), "--seed", str(seed), "--output", FOLDER, "--todo", *todos]
        command = ["-m", "grading.checks.observe", *arguments]
        outcome = sandbox.run_python(command, numbers.limits(seconds), {"PYTHONPATH": str(code)})
        judged = {todo: judge_file(sandbox, todo, seed, outcome, numbers.observation_bytes) for todo in todos}
    return judged, outcome.succeeded


def judge_file(sandbox: Sandbox, todo: str, seed: int, outcome: Outcome, max_bytes: int) -> Judged:
    """What is wrong with one TODO, from the file that the program wrote about it."""
    from ..checks.observe import unpack  # imports PyTorch, which takes seconds
    from ..checks.run import judge

    try:
        data = sandbox.collect(f"{FOLDER}/{todo}.safetensors", max_bytes)
    except SandboxError as error:
        return Judged((f"TODO ({todo}): its results cannot be taken: {error}",))
    if data is None:
        ended = how_it_ended(outcome)
        return Judged((f"TODO ({todo}): the program that runs it {ended}, before there were any results.",))
    try:
        seen = unpack(data)
    except ValueError:
        return Judged((f"TODO ({todo}): its results are no results of the program that runs it.",))
    results = judge(todo, seed, seen)
    problems, notes = ([one.message for one in results if one.passed is passed] for passed in (False, True))
    return Judged(tuple(problems), tuple(filter(None, notes)))
