"""Computes what is right, from our models. A program of its own: grading imports no task code in its own process.

    python -m grading.questions.key < asked.json > answers.json

`asked.json` is a list of {"configuration": ..., "name": ..., "drawn": ...}; the answers come in the same order, each a
number, a name, or a list of such (a shape is a list in a list). The folder of Task 1 must be on the path.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

from .drawing import Configuration
from .models import Models
from .sheet import QUESTIONS


@lru_cache(maxsize=2)
def models_of(configuration: Configuration) -> Models:
    return Models(configuration)


def plain(answer: Any) -> Any:
    """An answer as JSON has it."""
    return [plain(item) for item in answer] if isinstance(answer, (list, tuple)) else answer


def answer(asked: dict[str, Any]) -> Any:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in asked["configuration"].items()}
    return plain(QUESTIONS[asked["name"]].answer(models_of(Configuration(**fields)), asked["drawn"]))


def main() -> None:
    json.dump([answer(asked) for asked in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
