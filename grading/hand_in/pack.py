"""Checks a hand-in by the rules of the assignment, and packs it.

    python -m grading.hand_in --student-id 20241234 --name Gildong_Hong    # writes 20241234_Gildong_Hong.zip
    python -m grading.hand_in --check 20241234_Gildong_Hong.zip            # does the same checks on a finished zip

Without further options it takes task_1_controlnet/, the LoRAs that the trainings of Task 2 left in runs/, and the
report 20241234.pdf here or in runs/. What is wrong is listed with what to do about it; then nothing is written, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Iterable, Iterator, Mapping

try:
    import resource
except ImportError:  # on Windows: there nothing limits computing, only waiting
    resource = None

from finetune.argument_types import file_path

from ..files.archive import ArchiveError, unpack
from ..files.items import TASK_1
from ..files.lora import inspect_lora
from ..files.lora_likeness import are_alike
from ..files.report_pdf import inspect_report
from ..handed_out.banners import BannerError
from ..handed_out.record import ROOT, added_code, find_changes, read_handed_out
from ..handed_out.taken import take_texts
from ..report.words import ID_IN_WORDS, STUDENT_ID
from .sources import Line, Sources, sources_here, sources_in
from .zip import write_zip, zip_contents

NAME = re.compile(r"[A-Za-z0-9_-]+")
CHECKS_SECONDS = 600  # of computing
MAX_WAIT_SECONDS = 3600.0  # for these on a busy computer


def naming_problem(student_id: str, name: str) -> str | None:
    """A sentence if the zip cannot be named after them."""
    if not STUDENT_ID.fullmatch(student_id):
        return f"The student id {student_id!r} must be {ID_IN_WORDS}."
    if not NAME.fullmatch(name):
        return (
            f"The name {name!r} must be letters from a to z, digits, _ and -: write Gildong_Hong for Gildong Hong, and "
            "other scripts in Latin letters."
        )
    return None


def check_code(task_1: Path, finetune: Path) -> Iterator[Line]:
    """Is it as it was handed out, but for the TODO places?"""
    handed_out = read_handed_out()
    changes = find_changes(task_1, finetune, handed_out)
    yield from (Line("WRONG", "code", change.problem, change.diff) for change in changes)
    if not changes:
        yield Line("right", "code", f"{len(handed_out)} files are as they were handed out, but for the TODO places.")
    added = added_code(task_1, handed_out)
    if added:
        yield Line("note", "code", f"Your own files are handed in too: {', '.join(added)}.")


def check_sizes(task_1: Path) -> Iterator[Line]:
    """Would the grader read the TODO places?"""
    try:
        take_texts(task_1)
    except BannerError as error:
        yield Line("WRONG", "TODO places", str(error))


def check_todos(task_1: Path) -> Line:
    """Runs the checks of the five TODO places in another process, for so long as it takes on a busy computer."""
    command = [sys.executable, "-m", "grading.checks", "--task-1", str(task_1.resolve())]
    limit = resource and partial(resource.setrlimit, resource.RLIMIT_CPU, (CHECKS_SECONDS, CHECKS_SECONDS + 5))
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_WAIT_SECONDS, preexec_fn=limit
        )
    except subprocess.TimeoutExpired:
        said = f"Their checks do not end in {MAX_WAIT_SECONDS:.0f} seconds: look for what waits, or try when less runs."
        return Line("WRONG", "TODO places", said)
    if resource and run.returncode == -signal.SIGXCPU:
        said = f"Their checks do not end in {CHECKS_SECONDS} seconds of computing: look for a loop."
        return Line("WRONG", "TODO places", said)
    if run.returncode:
        return Line("WRONG", "TODO places", "Their checks find mistakes: correct them.", run.stdout + run.stderr)
    return Line("right", "TODO places", "The checks of all five pass.", run.stdout if "Note: " in run.stdout else "")


def check_loras(loras: Mapping[str, Path | None]) -> Iterator[Line]:
    """Is each of those that are there good, and are they different?"""
    good: dict[str, Path] = {}
    for item, path in loras.items():
        if path is None:
            continue
        report = inspect_lora(path)
        same = [other for other in good if are_alike(path, good[other])] if report.ok else []
        if not report.ok:
            yield Line("WRONG", item, report.problem)
        elif same:
            yield Line("WRONG", item, f"It has the same weights as {same[0]}: hand in two different LoRAs.")
        else:
            good[item] = path
            facts = f"A LoRA of rank {report.rank} for {report.base}, {report.bytes / 1e6:.1f} MB."
            yield Line("right", item, facts, report.warning or "")


def check_report(path: Path) -> Line:
    try:
        report = inspect_report(path)
    except TimeoutError as error:
        return Line("WRONG", "report", str(error))
    if not report.ok:
        return Line("WRONG", "report", report.problem)
    return Line("right", "report", f"A PDF of {report.pages} page{'s' if report.pages > 1 else ''}.")


def check(sources: Sources) -> Iterator[Line]:
    """All lines about a hand-in; what is quickly checked comes first."""
    yield from sources.lines
    if sources.report:
        yield check_report(sources.report)
    yield from check_loras(sources.loras)
    if sources.task_1:
        yield from check_code(sources.task_1, sources.finetune)
        yield from check_sizes(sources.task_1)
        yield Line("", "TODO places", "Running their checks, which takes about half a minute ...")
        yield check_todos(sources.task_1)


def show(lines: Iterable[Line]) -> bool:
    """Prints each line as soon as it is known; whether none is wrong."""
    right = True
    for line in lines:
        print(line, flush=True)
        right = right and line.mark != "WRONG"
    return right


def pack(sources: Sources, path: Path) -> bool:
    """Checks the items, and writes the zip if they are right; whether it did."""
    if not show(check(sources)):
        print(f"\n{path.name} is not written: correct what is WRONG, and start this again.")
        return False
    lora_1, lora_2 = sources.loras.values()
    files, left_out = zip_contents(sources.student_id, sources.task_1, sources.finetune, lora_1, lora_2, sources.report)
    if left_out:
        show([Line("note", "zip", f"Left out of {TASK_1}/: {', '.join(left_out)}.")])
    show([Line("", "zip", f"Writing {path} ...")])
    try:
        write_zip(files, path)
    except ArchiveError as error:
        show([Line("WRONG", "zip", str(error))])
        return False
    size = path.stat().st_size / 1e6
    return show([Line("right", "zip", f"{path} is ready to hand in: {len(files)} files, {size:.1f} MB.")])


def check_zip(path: Path) -> bool:
    """Unpacks a finished zip and checks it; whether it is right."""
    if not path.is_file():
        return show([Line("WRONG", "zip", f"There is no file {path}: name the zip that the hand-in wrote.")])
    student_id, _, name = path.stem.partition("_")
    problem = naming_problem(student_id, name) or (None if path.suffix == ".zip" else "Its name must end in .zip.")
    right = show([Line("WRONG", "zip", f"{path.name} is not named STUDENT-ID_NAME.zip. {problem}")] if problem else [])
    with tempfile.TemporaryDirectory() as folder:
        try:
            inside = unpack(path, Path(folder) / "hand_in")
        except ArchiveError as error:
            return show([Line("WRONG", "zip", str(error))])
        return show(check(sources_in(inside, student_id))) and right


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.hand_in", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--student-id", metavar="2024XXXX", help="yours: it names the zip and the report")
    add("--name", help="letters from a to z, digits, _ and -, as in Gildong_Hong")
    add("--task-1", type=file_path, metavar="DIR", help=f"your code of Task 1 (default: {TASK_1})")
    add("--lora-1", type=file_path, metavar="DIR_OR_FILE", help="the LoRA of Task 2-1 (default: that in runs/lora-*)")
    add("--lora-2", type=file_path, metavar="DIR_OR_FILE", help="that of Task 2-2 (default: in runs/dreambooth-*)")
    add("--report", type=file_path, metavar="PDF", help="the report (default: STUDENT-ID.pdf here or in runs/)")
    add("--output", type=file_path, metavar="DIR", default=Path("."), help="the folder for the zip (default: this one)")
    add("--check", type=file_path, metavar="ZIP", help="check a finished zip, and do nothing else")
    args = parser.parse_args()
    try:
        sys.exit(not check_zip(args.check) if args.check else not pack_as_asked(parser, args))
    except OSError as error:
        sys.exit(f"Error: {error}")


def pack_as_asked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether the zip is written."""
    if not args.student_id or not args.name:
        parser.error("--student-id and --name are needed, as in --student-id 20241234 --name Gildong_Hong")
    problem = naming_problem(args.student_id, args.name)
    if problem:
        parser.error(problem)
    sources = sources_here(args.student_id, args.task_1, args.lora_1, args.lora_2, args.report)
    return pack(sources, args.output / f"{args.student_id}_{args.name}.zip")
