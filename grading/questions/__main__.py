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
from typing import Iterator, Sequence

from finetune.argument_types import file_path
from finetune.run.progress import progress_bar

from ..report.words import ID_IN_WORDS, STUDENT_ID
from .sheet import QuestionsError, Sheet, compute_answers, draw_sheet
from .typeset import load_typst, typeset


def check_ids(ids: Sequence[str]) -> None:
    """Raises QuestionsError for the first that is no student id."""
    for student_id in ids:
        if not STUDENT_ID.fullmatch(student_id):
            raise QuestionsError(f"The student id {student_id!r} must be {ID_IN_WORDS}.")


def write_pages(sheets: Sequence[Sheet], output: Path, with_answers: bool) -> Iterator[list[Path]]:
    """The paths of the PDFs, sheet by sheet as they are written.

    Raises:
        QuestionsError: if typst is missing, the output is no folder, or the answers cannot be computed.
    """
    load_typst()
    if output.exists() and not output.is_dir():
        raise QuestionsError(f"{output} is a file: choose another folder with --output.")
    keys = compute_answers(sheets) if with_answers else ([] for _ in sheets)
    for sheet, answers in zip(sheets, keys):
        pages = {f"{sheet.student_id}.pdf": typeset(sheet)}
        if with_answers:
            pages[f"{sheet.student_id}-answers.pdf"] = typeset(sheet, answers)
        output.mkdir(parents=True, exist_ok=True)
        for name, pdf in pages.items():
            (output / name).write_bytes(pdf)
        yield [output / name for name in pages]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.questions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--student-id", nargs="+", required=True, metavar="2024XXXX", help="one, or several")
    add("--answers", action="store_true", help="also write the key, ID-answers.pdf")
    add("--salt", default="", metavar="WORD", help="draws other questions; keep it, as the key needs it too")
    add("--output", type=file_path, default=Path("build/questions"), help="the folder for the PDFs (%(default)s)")
    args = parser.parse_args()
    done = 0
    try:
        check_ids(args.student_id)
        sheets = [draw_sheet(student_id, args.salt) for student_id in args.student_id]
        written = write_pages(sheets, args.output, args.answers)
        for paths in progress_bar(written, total=len(sheets), unit="student", disable=len(sheets) == 1):
            done += 1
            print("\n".join(map(str, paths)))
    except (QuestionsError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"Stopped: the pages of {done} of {len(args.student_id)} students are written. Start again for all.")


if __name__ == "__main__":
    main()
