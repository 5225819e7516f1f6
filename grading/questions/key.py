"""Computes what is right, from our models. A program of its own: grading imports no task code in its own process.

    python -m grading.questions.key < asked.json > answers.jsonl

`asked.json` is a list of {"configuration": ..., "name": ..., "drawn": ...}; the answers are texts, one in each line, in
the same order and as soon as they are there. The folder of Task 1 must be on the path.
"""

from __future__ import annotations

import gc
import json
import sys
from functools import lru_cache
from typing import Any

from .drawing import Configuration
from .models import Models
from .sheet import QUESTIONS, write_answer


@lru_cache(maxsize=2)
def models_of(configuration: Configuration) -> Models:
    return Models(configuration)


def answer(asked: dict[str, Any]) -> str:
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in asked["configuration"].items()
    }
    return write_answer(QUESTIONS[asked["name"]].answer(models_of(Configuration(**fields)), asked["drawn"]))


def main() -> None:
    gc.freeze()  # models are many objects, and none of them is garbage soon: looking for it takes a seventh of the time
    gc.set_threshold(10_000, 20, 50)
    for asked in json.load(sys.stdin):
        print(json.dumps(answer(asked)), flush=True)


if __name__ == "__main__":
    main()
