"""Points that a teacher gives by hand, where no program can judge: kept in a file, merged, and added to the score.

The file `points_by_hand.json` holds every entry that was ever made, with its time; the last one of a hand-in's field
counts. So files can be merged in any order and any number of times, and nothing that somebody entered is lost.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from .results import write_atomically
from .rules import BY_HAND, Rules

STORE = "points_by_hand.json"
# What a browser calls a second download goes by this pattern, too.
DOWNLOADS = "points_by_hand*.json"
FORMAT = 1
MAX_BYTES = 20_000_000
MAX_NAME = 1000
# Clocks of people who grade together may differ so much.
CLOCKS_DIFFER = timedelta(hours=1)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


class PointsError(ValueError):
    """A file of points cannot be used; the message says why."""


@dataclass(frozen=True, order=True)
class Entry:
    """What somebody entered for a field of a hand-in, when (UTC); None takes back what was there."""

    time: str
    hand_in: str
    field: str
    value: float | None


@dataclass(frozen=True)
class Points:
    """All entries, from the first to the last. `collection` tells hand-ins of one course from those of another."""

    collection: str
    entries: tuple[Entry, ...] = ()

    def with_entries(self, more: Iterable[Entry]) -> Points:
        by_time = {*self.entries, *more}
        return Points(self.collection, tuple(sorted(by_time, key=lambda one: (one.time, repr(one)))))

    def current(self) -> dict[tuple[str, str], float]:
        """The values that count, by hand-in and field."""
        last = {(entry.hand_in, entry.field): entry.value for entry in self.entries}
        return {place: value for place, value in last.items() if value is not None}

    def given(self, name: str, rules: Rules) -> dict[str, float]:
        """What counts for a hand-in, by field, as far as the rules allow it."""
        found = {field: value for (hand_in, field), value in self.current().items() if hand_in == name}
        return {field: value for field, value in found.items() if rules.by_hand[field].allows(value)}

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "collection": self.collection, "entries": [asdict(one) for one in self.entries]}


def read_entry(said: Any) -> Entry:
    """Raises ValueError, KeyError or TypeError for what is none."""
    entry = Entry(**{name: said[name] for name in ("time", "hand_in", "field", "value")})
    value = entry.value
    right = (
        isinstance(entry.time, str) and TIME.fullmatch(entry.time)
        and isinstance(entry.hand_in, str) and len(entry.hand_in) <= MAX_NAME
        and entry.field in BY_HAND
        and (value is None or (type(value) in (int, float) and math.isfinite(value)))
    )  # fmt: skip
    if not right:
        raise ValueError(f"{str(said)[:200]} is no entry")
    datetime.fromisoformat(entry.time[:-1])  # such as the 31st of June is none
    return Entry(entry.time, entry.hand_in, entry.field, None if value is None else float(value))


def read_file(path: Path) -> Points:
    """The points in a file.

    Raises:
        PointsError: if it is none that the page or this program wrote.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        said = json.loads(path.read_text(encoding="utf-8-sig"))
        if said["format"] != FORMAT or not isinstance(said["collection"], str):
            raise ValueError(f"it is of another format than {FORMAT}")
        points = Points(said["collection"]).with_entries(map(read_entry, said["entries"]))
        stored(points).encode()  # JSON can name characters that no file can hold
        return points
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise PointsError(f"{path} cannot be used as points by hand ({why}). It is left as it is.") from None


def read_folder(folder: Path) -> Points:
    """All points that lie in the folder of results; the first time none, with a new name for the collection.

    Raises:
        PointsError: for a file that cannot be used.
    """
    store = folder / STORE
    points = read_file(store) if store.exists() else Points(secrets.token_hex(8))
    for path in sorted(folder.glob(DOWNLOADS)):
        points = points.with_entries(read_file(path).entries)
    return points


def stored(points: Points) -> str:
    return json.dumps(points.as_json(), indent=1, ensure_ascii=False) + "\n"


def write_store(folder: Path, points: Points) -> None:
    write_atomically(folder / STORE, stored(points))


def require_allowed(points: Points, rules: Rules, source: Path) -> None:
    """Raises PointsError for the first value that counts and that the rules do not allow."""
    for (name, field), value in points.current().items():
        if not rules.by_hand[field].allows(value):
            raise PointsError(
                f"{source}: {BY_HAND[field]} of {name!r} is {value:g}, but by the rules it is "
                f"{rules.by_hand[field].words()}. Nothing was changed."
            )


def unused(points: Points, rules: Rules, names: Iterable[str]) -> list[str]:
    """A sentence for every value that is kept, but counts for nothing."""
    known, sentences = set(names), []
    for (name, field), value in sorted(points.current().items()):
        what = f"{BY_HAND[field]} of {name!r}, {value:g}, is kept but does not count"
        if name not in known:
            sentences.append(f"Points by hand: {what}, as there is no such hand-in here.")
        elif not rules.by_hand[field].allows(value):
            sentences.append(f"Points by hand: {what}, as by the rules it is {rules.by_hand[field].words()}.")
    return sentences


def ahead(points: Points, now: datetime) -> list[str]:
    """A sentence for every value that counts and whose time is yet to come: others that are entered later do not."""
    latest = (now.astimezone(timezone.utc) + CLOCKS_DIFFER).strftime("%Y-%m-%dT%H:%M:%S.999Z")
    last = {(entry.hand_in, entry.field): entry for entry in points.entries}
    return [
        f"Points by hand: {BY_HAND[field]} of {name!r} was entered at {entry.time}, by a clock that is ahead, so "
        f"nothing that others enter before then counts. Look at it, and set it right on this grading's page."
        for (name, field), entry in sorted(last.items())
        if entry.time > latest
    ]


def utc_now() -> str:
    """Now, as an entry's time is written."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def outdated(points: Points, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for every value that counts and was given before the hand-in's files changed."""
    last = {(entry.hand_in, entry.field): entry for entry in points.entries if entry.value is not None}
    changed = {name: result["extra_data"].get("changed", "") for name, result in results.items()}
    return [
        f"Points by hand: {BY_HAND[field]} of {name!r}, {entry.value:g}, was given before other files came of this "
        f"hand-in ({changed[name][:16].replace('T', ' ')} UTC): look at it again."
        for (name, field), entry in sorted(last.items())
        if entry.time < changed.get(name, "") and (name, field) in points.current()
    ]


def fields_in_use(rules: Rules) -> Sequence[str]:
    return [field for field in BY_HAND if rules.by_hand[field].is_used]
