"""Writes a page with six questions for a student, and the key to it.

    python -m grading.questions --student-id 20241234             # build/questions/20241234.pdf
    python -m grading.questions --student-id 20241234 --answers   # and 20241234-answers.pdf

Each page asks about all five TODO places, with shapes and channels drawn from the student id: the same id gives the
same page. Whoever has this program can make the page of any id; with --salt and a word that only you know, nobody can.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

from ..report_words import STUDENT_ID
from .sheet import QuestionsError, compute_answers, draw_sheet
from .typeset import load_typst, typeset


def check_ids(ids: Sequence[str]) -> None:
    """Raises QuestionsError for the first that is no student id."""
    for student_id in ids:
        if not STUDENT_ID.fullmatch(student_id):
            raise QuestionsError(f"The student id {student_id!r} must be eight digits, such as 20241234.")


def write_pages(ids: Sequence[str], output: Path, salt: str, with_answers: bool) -> list[Path]:
    """The paths of the PDFs, student by student.

    Raises:
        QuestionsError: for a wrong id, if typst is missing, or if the answers cannot be computed.
    """
    check_ids(ids)
    load_typst()
    sheets = [draw_sheet(student_id, salt) for student_id in ids]
    answers = compute_answers(sheets) if with_answers else [None] * len(sheets)
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for sheet, right in zip(sheets, answers):
        pages = {f"{sheet.student_id}.pdf": None, f"{sheet.student_id}-answers.pdf": right}
        for name, content in pages.items():
            if name.endswith("-answers.pdf") and not with_answers:
                continue
            (output / name).write_bytes(typeset(sheet, content))
            paths.append(output / name)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.questions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--student-id", nargs="+", required=True, metavar="2024XXXX", help="one, or several")
    add("--answers", action="store_true", help="also write the key, ID-answers.pdf")
    add("--salt", default="", metavar="WORD", help="draws other questions; keep it, as the key needs it too")
    add("--output", type=Path, default=Path("build/questions"), help="the folder for the PDFs (%(default)s)")
    args = parser.parse_args()
    try:
        paths = write_pages(args.student_id, args.output, args.salt, args.answers)
    except (QuestionsError, OSError) as error:
        sys.exit(f"Error: {error}")
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
