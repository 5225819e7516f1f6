"""What Gradescope says of a hand-in in submission_metadata.json: when it came, when it was due, and what came before.

The time of handing in counts everywhere, so that grading again, whenever that is, comes to the same result.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Mapping

from .rules import Rules

METADATA = "submission_metadata.json"


class MetadataError(ValueError):
    """The file is not as Gradescope writes it; the message says where."""


@dataclass(frozen=True)
class Attempt:
    """An earlier hand-in, and the results.json that it got."""

    time: datetime
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """`due` is None where nothing is ever late; `earlier` is from the first to the last."""

    time: datetime
    due: datetime | None = None
    earlier: tuple[Attempt, ...] = ()


def read_time(value: Any) -> datetime:
    time = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if time.tzinfo is None:
        raise ValueError(f"{value!r} is in no time zone")
    return time


def read_due(said: Mapping[str, Any]) -> datetime | None:
    """When it was due: for a student with an extension that date, for a group the last one of its members."""
    own = [(user.get("assignment") or {}).get("due_date") for user in said.get("users") or ()]
    dates = list(filter(None, own)) or list(filter(None, [(said.get("assignment") or {}).get("due_date")]))
    return max(map(read_time, dates), default=None)


def read_submission(path: Path) -> Submission:
    """Reads Gradescope's file.

    Raises:
        MetadataError: if it is missing, or not as Gradescope writes it.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        earlier = [
            Attempt(read_time(one["submission_time"]), dict(one.get("results") or {}))
            for one in said.get("previous_submissions") or ()
        ]
        return Submission(
            read_time(said["created_at"]), read_due(said), tuple(sorted(earlier, key=lambda one: one.time))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MetadataError(f"{path.name} cannot be used ({type(error).__name__}: {error})") from None


def days_late(submission: Submission, rules: Rules) -> int:
    """How many days late it came, begun ones as whole ones; none begins before its minutes of grace are over."""
    if submission.due is None:
        return 0
    minutes = (submission.time - submission.due) / timedelta(minutes=1)
    if minutes <= rules.late_grace_minutes:
        return 0
    return math.ceil((minutes - rules.late_grace_minutes) / (24 * 60))


def counts(attempt: Attempt) -> bool:
    """Whether it was graded: there are results, of its own, and not those of a grading that failed."""
    extra = extra_data(attempt.results)
    return bool(attempt.results) and extra.get("graded", True) and not extra.get("refused", False)


def extra_data(results: Mapping[str, Any]) -> dict[str, Any]:
    extra = results.get("extra_data")
    return extra if isinstance(extra, dict) else {}


def results_that_stay(submission: Submission, rules: Rules) -> dict[str, Any] | None:
    """The results of the last graded hand-in, with the reason why this one is not graded; None if it may be."""
    graded = [attempt for attempt in submission.earlier if counts(attempt) and attempt.time <= submission.time]
    hours = rules.attempts_hours
    counted = [one for one in graded if not hours or (submission.time - one.time) / timedelta(hours=1) < hours]
    if not rules.attempts or len(counted) < rules.attempts:
        return None
    within = f" within {hours:g} hours" if hours else ""
    times = "once" if rules.attempts == 1 else f"{rules.attempts} times"
    last = dict(counted[-1].results)
    last["output"] = (
        f"This hand-in was not graded, as each student may hand in {times}{within}. Points and reasons are those of "
        f"the hand-in of {counted[-1].time:%Y-%m-%d %H:%M %Z}."
    )
    last["extra_data"] = {**extra_data(last), "refused": True}
    return last
