"""Brings points that were given by hand on the page of all hand-ins into the table and that page.

    python -m grading.points ~/Downloads/points_by_hand.json                       # what the page's button saved
    python -m grading.points FILE ANOTHER_FILE --grades build/grades               # of several people, in any order
    python -m grading.points                                                       # what was saved in the folder itself

All entries are kept in build/grades/points_by_hand.json, from which the next grading takes them, too. The last entry
for a field counts; files can be merged again and again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Sequence

from finetune.argument_types import file_path

from ..grades.by_hand import (
    STORE,
    Points,
    PointsError,
    ahead,
    outdated,
    read_file,
    read_folder,
    require_allowed,
    unused,
    write_store,
)
from ..grades.form import DATA_END, DATA_START, SAID_END, SAID_START, data_block, said
from ..grades.numbers import Numbers, with_settings
from ..grades.results import write_atomically, write_table
from ..grades.rules import Allowed, Rules
from ..grades.teacher_files import PAGE, TABLE

RESULTS = "results.json"


def split_page(page: Path) -> tuple[str, dict[str, Any], str]:
    """What stands before the page's data, the data, and what stands behind.

    Raises:
        PointsError: for a page without them, as an older release wrote it.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(DATA_START)
    text, end, after = rest.partition(DATA_END)
    if not (start and end and SAID_START in before):
        raise PointsError(f"{page} has no form for points by hand: grade again.")
    return before, json.loads(text), after


def by_the_page(rules: Rules, page: Path) -> Rules:
    """The rules with those points by hand that the page's fields take, by which they were entered.

    Raises:
        PointsError: for a page of an older release.
    """
    fields = {field["name"]: field for field in split_page(page)[1]["fields"]}
    allowed = {
        name: Allowed(field["low"], field["high"], None if field["values"] is None else tuple(field["values"]))
        for name, field in fields.items()
    }
    return replace(rules, by_hand={**dict.fromkeys(rules.by_hand, Allowed(values=())), **allowed})


def merge(grades: Path, files: Sequence[Path], rules: Rules, others_too: bool = False) -> Points:
    """Takes the files' entries over into the folder's own file, and returns all of them.

    Args:
        others_too: also entries from another grading's page, where hand-ins may have the same names.

    Raises:
        PointsError: for a file or a value that cannot be used; then nothing is changed.
    """
    fresh, points = not (grades / STORE).exists(), read_folder(grades)
    for file in files:
        more = read_file(file)
        if fresh:  # nothing was graded yet: these are the grading's that will be
            fresh, points = False, replace(points, collection=more.collection)
        if more.collection != points.collection and not others_too:
            raise PointsError(
                f"{file} is of another grading than {grades}, and would count for hand-ins of the same names. If that "
                "is meant, as when two people graded the same ones, add --other-grading. Nothing was changed."
            )
        require_allowed(more, rules, file)
        points = points.with_entries(more.entries)
    write_store(grades, points)
    return points


def update(grades: Path, points: Points, rules: Rules) -> list[str]:
    """Writes table and page anew with these points; sentences about those that count for nothing, or too much.

    Raises:
        PointsError: if the page is of an older release.
        OSError: if a result that the page shows is gone.
    """
    before, data, after = split_page(grades / PAGE)
    names = {one["name"]: one["folder"] for one in data["hand_ins"]}
    files = {name: grades / folder / RESULTS for name, folder in names.items()}
    results = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    data["entries"] = points.as_json()["entries"]
    write_table(grades / TABLE, results, {name: points.given(name, rules) for name in names})
    sentences = [*unused(points, rules, names), *ahead(points, datetime.now(timezone.utc)), *outdated(points, results)]
    above, _, rest = before.partition(SAID_START)
    before = f"{above}{said(sentences)}{rest.partition(SAID_END)[2]}"
    write_atomically(grades / PAGE, f"{before}{data_block(data)}{after}")
    return sentences


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.points", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", type=file_path, nargs="*", metavar="FILE", help="points_by_hand.json, as the page saved it")
    add("--grades", type=file_path, default=Path("build/grades"), help="the folder of results (%(default)s)")
    add("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="other rules than the page's")
    add("--other-grading", action="store_true", help="take points from another grading's page, too")
    args = parser.parse_args()
    try:
        if not args.grades.is_dir():
            raise PointsError(f"There is no folder {args.grades}: name the one with {PAGE} by --grades.")
        rules = with_settings(Numbers(), args.settings).rules
        if not args.settings and (args.grades / PAGE).is_file():
            rules = by_the_page(rules, args.grades / PAGE)
        points = merge(args.grades, args.files, rules, args.other_grading)
        if not (args.grades / PAGE).is_file():
            return print(f"The points are kept in {args.grades}. There is no {PAGE} yet: the next grading uses them.")
        sentences = update(args.grades, points, rules)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(*sentences, f"{len(points.current())} points by hand are in {args.grades / TABLE}.", sep="\n")


if __name__ == "__main__":
    main()
