"""The teacher's files of a grading: the table and the page, with the points by hand that lie beside them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..sandbox.trusted import GraderError
from .by_hand import Points, PointsError, read_folder, write_store
from .numbers import Numbers
from .results import plain_text, write_atomically, write_table
from .teacher_page import page

TABLE, PAGE = "grades.csv", "index.html"


def names_in(table: Path) -> set[str]:
    """The hand-ins that a table is about; none if there is no table."""
    if not table.is_file():
        return set()
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {row[0] for row in list(csv.reader(file))[1:] if row}


@dataclass
class TeacherFiles:
    """Writes them anew after each hand-in; what was entered meanwhile is read each time.

    Args:
        output: the folder that they are in.
        folders: in it, of each hand-in the folder with its results.json.
        left_out: sentences about what was not graded.

    Raises:
        PointsError: for points by hand that cannot be used, before anything is written over.
        GraderError: for a single hand-in where the table of a course lies.
    """

    output: Path
    folders: Mapping[str, str]
    numbers: Numbers
    left_out: Sequence[str] = ()
    points: Points = field(init=False)

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        others = names_in(self.output / TABLE) - {plain_text(name) for name in self.folders}
        if len(others) > 1 and len(self.folders) == 1:
            raise GraderError(
                f"{self.output} has the table of {len(others)} others, which one hand-in would replace: grade the "
                "folder with all of them again, as nothing that is graded is graded twice; or choose another --output."
            )
        self.points = read_folder(self.output)
        write_store(self.output, self.points)

    def write(
        self,
        results: Mapping[str, Mapping[str, Any]],
        rows: Mapping[str, Sequence[Mapping[str, Any]]],
        likeness: str = "",
    ) -> None:
        """Table and page of these results so far, with their pictures, and a section about what they have in common."""
        try:
            self.points = read_folder(self.output)
        except PointsError as error:  # an hour's grading does not end for it: those known so far count
            print(f"Note: {error}", flush=True)
        given = {name: self.points.given(name, self.numbers.rules) for name in results}
        write_table(self.output / TABLE, results, given)
        shown = page(results, rows, self.numbers, self.left_out, likeness, self.points, self.folders, str(self.output))
        write_atomically(self.output / PAGE, shown)
