"""The sheet of a student: six questions, and what is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Iterator, Sequence, TextIO

from ..handed_out.banners import TODOS
from . import place_1, place_2, place_3, place_4
from .drawing import Configuration, Draw, Question, draw_configuration

ROOT = Path(__file__).resolve().parents[2]
TASK_1 = ROOT / "task_1_controlnet"
QUESTIONS: dict[str, Question] = {
    question.name: question for place in (place_1, place_2, place_3, place_4) for question in place.QUESTIONS
}


class QuestionsError(Exception):
    """The questions or their answers cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Asked:
    """A question with what was drawn for it."""

    question: Question
    drawn: dict[str, Any]

    @property
    def text(self) -> str:
        return self.question.text.format(**self.drawn)


@dataclass(frozen=True)
class Sheet:
    student_id: str
    configuration: Configuration
    asked: tuple[Asked, ...]


def ask(question: Question, key: Sequence[str], configuration: Configuration) -> Asked:
    return Asked(question, question.draw(Draw(*key, question.name), configuration))


def draw_sheet(student_id: str, salt: str = "") -> Sheet:
    """One question on each TODO place and a second one on some place; the same for the same id and salt, always."""
    key = (salt, student_id)
    configuration = draw_configuration(Draw(*key, "configuration"))
    draw = Draw(*key, "questions")
    chosen: list[Question] = []
    for todo in sorted((*TODOS, draw.choice(TODOS))):
        kinds = {question.kind for question in chosen}
        chosen.append(draw.choice([q for q in QUESTIONS.values() if q.place == todo and q.kind not in kinds]))
    return Sheet(student_id, configuration, tuple(ask(question, key, configuration) for question in chosen))


def write_answer(answer: Any) -> str:
    """An answer as one writes it: 12,345, 0.379, `down_blocks.0`; a tuple as a shape, and a list as several answers."""
    if isinstance(answer, list):
        return ("; " if any(isinstance(item, tuple) for item in answer) else ", ").join(map(write_answer, answer))
    if isinstance(answer, tuple):
        return f"({', '.join(map(str, answer))})"
    if isinstance(answer, float):
        return f"{answer:.3f}"
    if isinstance(answer, (int, str)):
        return f"{answer:,}" if isinstance(answer, int) else answer
    raise TypeError(f"{answer!r} answers no question")


def requests(sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
    """What `key.py` is asked, question by question: plain data."""
    return [
        {"configuration": asdict(sheet.configuration), "name": one.question.name, "drawn": one.drawn}
        for sheet in sheets
        for one in sheet.asked
    ]


def compute_answers(sheets: Sequence[Sheet]) -> Iterator[list[str]]:
    """What is right for each question, sheet by sheet as it is computed, in one other process.

    Raises:
        QuestionsError: if that process fails, as it does where the TODO places are not filled in.
    """
    path = os.pathsep.join(filter(None, [str(TASK_1), str(ROOT), os.environ.get("PYTHONPATH")]))
    with TemporaryFile("w+") as listing, TemporaryFile("w+") as said:
        json.dump(requests(sheets), listing)
        listing.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.key"],
            stdin=listing, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        with process:
            try:
                for sheet in sheets:
                    lines = [process.stdout.readline() for _ in sheet.asked]
                    if not all(lines):
                        raise QuestionsError(why_it_ended(process, said))
                    yield [json.loads(line) for line in lines]
            finally:
                process.kill()


def why_it_ended(process: subprocess.Popen, said: TextIO) -> str:
    status = process.wait()
    said.seek(0)
    reason = (said.read().strip().splitlines() or [f"exit status {status}"])[-1]
    return f"The answers cannot be computed with the models in {TASK_1.name}/: {reason}"
