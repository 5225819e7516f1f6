"""Grades one hand-in in a process of its own: whatever happens to that, there are results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from ..files.archive import OF_THE_MACHINE
from ..grades.numbers import Numbers, with_settings
from ..grades.results import gallery, not_graded, quick_look, results_of, write_atomically
from ..grades.rubric import Evidence, look_quickly, share_left
from ..sandbox.start import end_session, kill_session, start_python
from ..sandbox.trusted import ROOT
from .alignment import Shared
from .grade import Judges, grade_hand_in, quick_judges, real_judges
from .proof.prove import Reference

RESULTS, GALLERY = "results.json", "gallery.json"
# Of the total time, for ending what runs and writing the results.
LAST_SECONDS = 30.0
TAIL_CHARACTERS = 1500
TOO_SLOW = "this machine is too slow, or too busy with other programs"


@dataclass(frozen=True)
class Job:
    """What the process that grades one hand-in is told; `hidden` must be out of the student's sight.

    `reference` and `plain` are the folders of what `proof.prove` and `loras.keep_plain` keep, or empty.
    """

    hand_in: str
    shared: str
    hidden: list[str]
    settings: list[str]
    gaps: list[str]
    seconds: float
    output: str
    days_late: int = 0
    quick: bool = False
    reference: str = ""
    plain: str = ""


def judges_of(job: Job, numbers: Numbers, work: Path) -> Judges:
    hidden = [work, *map(Path, job.hidden)]
    if job.quick:
        return quick_judges(numbers, hidden)
    reference = Reference(Path(job.reference)) if job.reference else None
    hidden += [Path(job.reference)] if job.reference else []
    plain = Path(job.plain) if job.plain else None
    return real_judges(Shared(Path(job.shared)), numbers, hidden, work, job.seconds, reference, plain)


def run_job(job: Job) -> None:
    """Grades one hand-in, in this process, and writes results.json and gallery.json into the job's output folder."""
    start = time.monotonic()
    numbers = with_settings(Numbers(), job.settings)
    evidence = Evidence({})
    with private_folder() as work:
        judges, hand_in = judges_of(job, numbers, work), Path(job.hand_in)
        try:
            if job.quick:
                _, scores = grade_hand_in(hand_in, judges, numbers, work, job.days_late, look_quickly)
                results = quick_look(scores, numbers, time.monotonic() - start, job.gaps)
            else:
                evidence, scores = grade_hand_in(hand_in, judges, numbers, work, job.days_late)
                known = (evidence.mean_iou, share_left(evidence, numbers.rules), evidence.of_reference)
                results = results_of(scores, numbers, time.monotonic() - start, job.gaps, *known)
        except TimeoutError as error:
            results = not_graded(str(error), numbers)
        except OSError as error:
            if error.errno not in OF_THE_MACHINE:
                raise
            results = not_graded(f"this machine cannot do it ({error.strerror}).", numbers)
    (Path(job.output) / GALLERY).write_text(json.dumps(gallery(evidence, numbers)))
    (Path(job.output) / RESULTS).write_text(json.dumps(results))


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder that only this user can look into."""
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        yield Path(folder).resolve()


def supervise(job: Job, numbers: Numbers, command: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Has another process do a job, and returns its results and gallery; where it fails, results that say so."""
    with tempfile.TemporaryFile() as printed:
        process = start_python([*command, json.dumps(asdict(job))], ROOT, os.environ, printed.fileno())
        with _lock:
            _running.add(process)
        try:
            code = process.wait(job.seconds + LAST_SECONDS)
        except subprocess.TimeoutExpired:
            minutes = (job.seconds + LAST_SECONDS) / 60
            return not_graded(f"it took longer than {minutes:.0f} minutes, as {TOO_SLOW}.", numbers), []
        finally:
            end_session(process)  # its sandboxes end with it
            with _lock:
                _running.discard(process)
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    if code:
        print(said[-TAIL_CHARACTERS:], file=sys.stderr)
        return not_graded("the grader stopped.", numbers), []
    results, rows = (json.loads((Path(job.output) / name).read_text()) for name in (RESULTS, GALLERY))
    return results, rows


CHILD = ("-m", "grading.autograder", "--job")
_running: set[Any] = set()
_lock = threading.Lock()


def stop_all() -> None:
    """Ends every job that runs, at once: those who wait for one get results that say so."""
    with _lock:
        for process in _running:
            kill_session(process)


def grade_into(
    hand_in: Path,
    target: Path,
    shared: Path,
    hidden: Sequence[Path],
    settings: Sequence[str],
    gaps: Sequence[str],
    seconds: float,
    command: Sequence[str] = CHILD,
    *,
    days_late: int = 0,
    quick: bool = False,
    reference: Path | None = None,
    plain: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Grades one hand-in and writes the file `target`, which is there from the beginning and whole at every moment.

    Args:
        command: what Python runs, with the job as its last argument.
    """
    numbers = with_settings(Numbers(), settings)
    write_results(target, not_graded("the grading was not finished.", numbers))
    with private_folder() as output:
        job = Job(
            hand_in=str(hand_in.resolve()),
            shared=str(shared),
            hidden=[str(path.resolve()) for path in (output, target.parent, hand_in, *hidden)],
            settings=list(settings),
            gaps=list(gaps),
            seconds=seconds,
            output=str(output),
            days_late=days_late,
            quick=quick,
            reference=str(reference or ""),
            plain=str(plain or ""),
        )
        results, rows = supervise(job, numbers, command)
    write_results(target, results)
    return results, rows


def write_results(target: Path, results: Mapping[str, Any]) -> None:
    write_atomically(target, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
