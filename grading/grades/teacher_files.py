"""The teacher's files of a grading: the table and the page, with the points by hand that lie beside them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from finetune.run.notes import some

from ..sandbox.trusted import GraderError
from .by_hand import Points, PointsError, read_folder, write_store
from .numbers import Numbers
from .results import plain_text, write_atomically, write_table
from .teacher_page import page

TABLE, PAGE, SOURCE = "grades.csv", "index.html", ".graded-from"


def names_in(table: Path) -> set[str]:
    """The hand-ins that a table is about; none if there is no table.

    Raises:
        GraderError: for a table that cannot be read.
    """
    if not table.is_file():
        return set()
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return {row[0] for row in list(csv.reader(file))[1:] if row}
    except (csv.Error, UnicodeDecodeError) as error:
        raise GraderError(
            f"{table} is not as the grader wrote it ({error}), perhaps as another program saved it: move it away, and "
            "it is written anew."
        ) from error


@dataclass
class TeacherFiles:
    """Writes them anew after each hand-in; what was entered meanwhile is read each time.

    Args:
        output: the folder that they are in.
        folders: in it, of each hand-in the folder with its results.json.
        left_out: sentences about what was not graded.
        source: where the hand-ins are, if that is known.

    Raises:
        PointsError: for points by hand that cannot be used, before anything is written over.
        GraderError: where the table of another source lies, and hand-ins would vanish from it.
    """

    output: Path
    folders: Mapping[str, str]
    numbers: Numbers
    left_out: Sequence[str] = ()
    source: Path | None = None
    points: Points = field(init=False)

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        known = names_in(self.output / TABLE)
        others = known - {plain_text(name) for name in self.folders}
        if len(known) > 1 and others and self.is_another_source():
            raise GraderError(
                f"{self.output} has a table with {some(sorted(others))}, too, which these hand-ins would replace. "
                "Put all in one folder and grade that, as nothing that is graded is graded twice; or choose another "
                f"--output; or remove {TABLE} there, if the others are to go."
            )
        if self.source:
            write_atomically(self.output / SOURCE, str(self.source.resolve()))
        self.points = read_folder(self.output)
        write_store(self.output, self.points)

    def is_another_source(self) -> bool:
        """From the same folder a hand-in may vanish: it was taken back."""
        before = self.output / SOURCE
        same = before.is_file() and self.source and before.read_text(encoding="utf-8") == str(self.source.resolve())
        return self.source is not None and not same

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
