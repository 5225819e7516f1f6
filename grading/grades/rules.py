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

FULL = 10.0  # points of a task
TASKS = ("Task 1: ControlNet", "Task 2: LoRA and DreamBooth")
# The lines of a result, by which rules can name them.
LINES = (
    "Hand-in",
    *TASKS,
    *(f"Task 1: TODO ({todo})" for todo in TODOS),
    *(f"Task 2: {name}" for name in ("lora_1", "lora_2")),
)
RULES = Path(__file__).with_name("rules.toml")
# What a teacher may give points for by hand; see by_hand.py.
BY_HAND: Mapping[str, str] = {"task_2": "Task 2", "task_1_1": "Task 1-1", "report": "Report"}
VISIBILITIES = ("visible", "after_due_date", "after_published", "hidden")


class RulesError(ValueError):
    """The rules cannot be used; the message names the one, and says how it must be written."""


@dataclass(frozen=True)
class Allowed:
    """Which points can be given: these values, or else any from `low` to `high`. Without any there is no such field."""

    low: float = 0.0
    high: float = 0.0
    values: tuple[float, ...] | None = None

    @property
    def is_used(self) -> bool:
        return self.values != ()

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high if self.values is None else value in self.values

    def words(self) -> str:
        if self.values is None:
            return f"from {self.low:g} to {self.high:g}"
        return f"one of {', '.join(f'{value:g}' for value in self.values)}" if self.values else "not given"


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
    leaderboard_seconds: bool
    visibility: str
    visibility_of: Mapping[str, str]
    by_hand: Mapping[str, Allowed]

    def visibility_at(self, line: str) -> str:
        """When students see the line of the result with this name."""
        fitting = [when for name, when in self.visibility_of.items() if fnmatchcase(line, name)]
        return fitting[-1] if fitting else self.visibility

    def without_points_by_hand(self) -> Rules:
        return replace(self, by_hand=dict.fromkeys(self.by_hand, Allowed(values=())))

    def changed(self, name: str, text: str) -> Rules:
        """The rules with one of them as a command line gives it: as in the file, where a text needs no quotes.

        Raises:
            RulesError: for a value that the rule cannot have.
        """
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        return replace(self, **{name: checked(name, value)})


def in_hundredths(value: float) -> float:
    """Points to two places, halves up: as taught, and as form.js does. Python's `round` makes 2.12 of 2.125."""
    return math.floor(100 * value + 0.5) / 100


def share(value: Any) -> float:
    """A share as it is written, such as "10 %". Raises ValueError."""
    if value in ("all", "none"):
        return float(value == "all")
    percent = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", value) if isinstance(value, str) else None
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


def points(value: Any) -> float:
    if number(value) > FULL:
        raise ValueError(f"a number from 0 to {FULL:g}")
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


def allowed(value: Any) -> Allowed:
    """The points that can be given, as a list or as "LOW to HIGH". Raises ValueError."""
    numbers = value.split(" to ") if isinstance(value, str) else value
    try:
        if not all(type(one) in ((str,) if isinstance(value, str) else (int, float)) for one in numbers):
            raise TypeError
        found = tuple(float(one) for one in numbers)
    except (TypeError, ValueError, OverflowError):
        found = (math.inf,)
    if not all(map(math.isfinite, found)) or isinstance(value, str) and not (len(found) == 2 and found[0] < found[1]):
        raise ValueError('of points each a list such as [0, 5, 10], or two numbers such as "0 to 5"; [] for no field')
    return Allowed(*found) if isinstance(value, str) else Allowed(values=found)


def by_hand(value: Any) -> Mapping[str, Allowed]:
    if not isinstance(value, dict) or sorted(value) != sorted(BY_HAND):
        raise ValueError(f"a table of {', '.join(BY_HAND)}")
    return {name: allowed(value[name]) for name in BY_HAND}


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "missing_item": share,
    "changes": share,
    "long_report": share,
    "both_loras_wrong": points,
    "late_day": share,
    "late_free_days": whole,
    "late_last_day": whole,
    "late_grace_minutes": whole,
    "attempts": whole,
    "attempts_hours": number,
    "leaderboard": switch,
    "leaderboard_seconds": switch,
    "visibility": visibility,
    "visibility_of": visibilities,
    "by_hand": by_hand,
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
    except (ValueError, RecursionError) as error:
        raise RulesError(f"{path.name} cannot be read: {error}") from None
    names = [field.name for field in fields(Rules)]
    for name in said:
        if name not in names:
            raise RulesError(f"{path.name} has a rule {name!r}, which there is not; there are {', '.join(names)}.")
    missing = [name for name in names if name not in said]
    if missing:
        raise RulesError(f"{path.name} must have the rules {', '.join(missing)}, too.")
    return Rules(**{name: checked(name, said[name]) for name in names})
