"""The assignment's rules, which a teacher sets in rules.toml, read and checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Callable, Mapping

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

from ..handed_out.banners import TODOS

TASKS = ("Task 1: ControlNet", "Task 2: LoRA and DreamBooth")
# The lines of a result, by which rules can name them.
LINES = (
    "Hand-in",
    *TASKS,
    *(f"Task 1: TODO ({todo})" for todo in TODOS),
    *(f"Task 2: {name}" for name in ("lora_1", "lora_2")),
)
RULES = Path(__file__).with_name("rules.toml")
VISIBILITIES = ("visible", "after_due_date", "after_published", "hidden")


class RulesError(ValueError):
    """The rules cannot be used; the message names the one, and says how it must be written."""


@dataclass(frozen=True)
class Rules:
    """What rules.toml says, and explains. Shares are from 0 to 1."""

    missing_item: float
    changes: float
    long_report: float
    both_loras_wrong: float
    late_day: float
    late_free_days: int
    late_last_day: int
    late_grace_minutes: int
    attempts: int
    attempts_hours: float
    leaderboard: bool
    visibility: str
    visibility_of: Mapping[str, str]

    def visibility_at(self, line: str) -> str:
        """When students see the line of the result with this name."""
        fitting = [when for name, when in self.visibility_of.items() if fnmatchcase(line, name)]
        return fitting[-1] if fitting else self.visibility

    def changed(self, name: str, text: str) -> Rules:
        """The rules with one of them as a command line gives it: as in the file, where a text needs no quotes.

        Raises:
            RulesError: for a value that the rule cannot have.
        """
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        return replace(self, **{name: checked(name, value)})


def share(value: Any) -> float:
    """A share as it is written, such as "10 %". Raises ValueError."""
    if value in ("all", "none"):
        return float(value == "all")
    percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", value) if isinstance(value, str) else None
    if not percent or float(percent[1]) > 100:
        raise ValueError('"all", "none", or a share such as "10 %"')
    return float(percent[1]) / 100


def whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a whole number from 0 on")
    return value


def number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("a number from 0 on")
    return float(value)


def switch(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def visibility(value: Any) -> str:
    if value not in VISIBILITIES:
        raise ValueError(f"one of {', '.join(VISIBILITIES)}")
    return value


def visibilities(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError("a table of names and visibilities")
    for name in value:
        if not any(fnmatchcase(line, name) for line in LINES):
            raise ValueError(f"about lines of the result, which {name!r} is none of: {', '.join(LINES)}")
    return {name: visibility(when) for name, when in value.items()}


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "missing_item": share,
    "changes": share,
    "long_report": share,
    "both_loras_wrong": number,
    "late_day": share,
    "late_free_days": whole,
    "late_last_day": whole,
    "late_grace_minutes": whole,
    "attempts": whole,
    "attempts_hours": number,
    "leaderboard": switch,
    "visibility": visibility,
    "visibility_of": visibilities,
}


def checked(name: str, value: Any) -> Any:
    try:
        return KINDS[name](value)
    except ValueError as error:
        raise RulesError(f"The rule {name} is {value!r}, but must be {error}.") from None


def read_rules(path: Path = RULES) -> Rules:
    """The rules in a file.

    Raises:
        RulesError: for a file that is no TOML, for a rule that is missing or is none, and for a value that it cannot
            have.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RulesError(f"{path.name} cannot be read: {error}") from None
    names = [field.name for field in fields(Rules)]
    for name in said:
        if name not in names:
            raise RulesError(f"{path.name} has a rule {name!r}, which there is not; there are {', '.join(names)}.")
    missing = [name for name in names if name not in said]
    if missing:
        raise RulesError(f"{path.name} must have the rules {', '.join(missing)}, too.")
    return Rules(**{name: checked(name, said[name]) for name in names})
