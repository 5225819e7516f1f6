"""The contest for the leaderboard: a hand-in's recipe, trained by another process beside the reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..sandbox.trusted import ROOT, GraderError, run_trusted
from .recipe import RecipeError, read_recipe
from .run import RESULT, in_words

# Where a hand-in has it: beside the code of Task 1, among files of the student's own.
RECIPE = "recipe.toml"
OUTPUT = ROOT / "build" / "contest"
LEAST_SECONDS = 60.0


@dataclass(frozen=True)
class Entered:
    """`of_reference` is the time to the target as a multiple of the reference's, None if there is none; why, in words.

    Whatever it is, it changes no points.
    """

    of_reference: float | None
    words: str


def enter(file: Path, seconds: float, memory_mib: int, output: Path = OUTPUT) -> Entered:
    """Holds the contest with the recipe in a file, within so many seconds by the clock."""
    try:
        recipe = read_recipe(file)
        if seconds < LEAST_SECONDS:
            return Entered(None, f"{RECIPE} was not tried: no time was left for it.")
        flags = ["--output", str(output.resolve()), "--memory", str(memory_mib)]
        run_trusted(["-m", "grading.contest", str(file.resolve()), *flags], ROOT, seconds)
        result = json.loads((output / recipe.folder_name / RESULT).read_text(encoding="utf-8"))
    except RecipeError as error:
        return Entered(None, str(error))
    except GraderError as error:
        return Entered(None, f"{RECIPE} was not measured: {error}")
    return Entered(result["of_reference"], in_words(result))
