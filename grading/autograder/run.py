"""Grades hand-ins by the assignment's rubric, on a machine without a GPU.

    python -m grading.autograder HAND_IN.zip --output build/grades        # one, or a folder of them, also in folders
    python -m grading.autograder FOLDER --set train_steps=900 --jobs 2    # with another number of grades/numbers.py
    python -m grading.autograder --gradescope                             # what run_autograder does

For each hand-in it writes results.json, and for the teacher grades.csv and index.html, a page with the pictures. Each
is graded by a process of its own: whatever happens to that, there are results. As root, student's code runs as another
user (see grading/sandbox/).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, Iterator, Mapping, Sequence

from finetune.numbers import positive_int

from ..files.archive import is_dropping
from ..grades.numbers import Numbers, with_settings
from ..grades.results import gallery, in_short, not_graded, results_of, write_atomically
from ..grades.rubric import Evidence, share_left
from ..grades.submission import METADATA, MetadataError, Submission, days_late, read_submission, results_that_stay
from ..grades.teacher_files import PAGE, TABLE, TeacherFiles
from ..sandbox.cores import thread_environment, usable_cores
from ..sandbox.isolation import check_packages, isolation_gaps
from ..sandbox.sandbox import Sandbox
from ..sandbox.trusted import ROOT, GraderError
from ..sandbox.watch import SandboxError
from .alignment import PREPARE_SECONDS, Shared, prepare, share
from .collection import hand_ins, is_readable_archive, left_out
from .grade import grade_hand_in, real_judges

RESULTS, GALLERY = "results.json", "gallery.json"
PREPARED = ROOT / "build" / "prepared"
# Of the total time, for ending what runs and writing the results.
LAST_SECONDS = 30.0
TAIL_CHARACTERS = 1500
TOO_SLOW = "this machine is too slow, or too busy with other programs"


@dataclass(frozen=True)
class Job:
    """What the process that grades one hand-in is told; `hidden` must be out of the student's sight."""

    hand_in: str
    shared: str
    hidden: list[str]
    settings: list[str]
    gaps: list[str]
    seconds: float
    output: str
    days_late: int = 0


def run_job(job: Job) -> None:
    """Grades one hand-in, in this process, and writes results.json and gallery.json into the job's output folder."""
    start = time.monotonic()
    numbers = with_settings(Numbers(), job.settings)
    evidence = Evidence({})
    with private_folder() as work:
        hidden = [work, *map(Path, job.hidden)]
        judges = real_judges(Shared(Path(job.shared)), numbers, hidden, work, job.seconds)
        try:
            evidence, scores = grade_hand_in(Path(job.hand_in), judges, numbers, work, job.days_late)
            known = (evidence.mean_iou, share_left(evidence, numbers.rules), evidence.of_reference)
            results = results_of(scores, numbers, time.monotonic() - start, job.gaps, *known)
        except TimeoutError as error:
            results = not_graded(str(error), numbers)
    (Path(job.output) / GALLERY).write_text(json.dumps(gallery(evidence, numbers)))
    (Path(job.output) / RESULTS).write_text(json.dumps(results))


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder that only this user can look into."""
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        yield Path(folder).resolve()


def supervise(job: Job, numbers: Numbers, command: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Has another process do a job, and returns its results and gallery; where it fails, results that say so."""
    process = subprocess.Popen(
        [*command, json.dumps(asdict(job))], cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = process.communicate(timeout=job.seconds + LAST_SECONDS)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its sandboxes end with it
        process.communicate()
        minutes = (job.seconds + LAST_SECONDS) / 60
        return not_graded(f"it took longer than {minutes:.0f} minutes, as {TOO_SLOW}.", numbers), []
    if process.returncode:
        print(said[-TAIL_CHARACTERS:], file=sys.stderr)
        return not_graded("the grader stopped.", numbers), []
    results, rows = (json.loads((Path(job.output) / name).read_text()) for name in (RESULTS, GALLERY))
    return results, rows


CHILD = (sys.executable, "-m", "grading.autograder", "--job")


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
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Grades one hand-in and writes the file `target`, which is there from the beginning and whole at every moment."""
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
        )
        results, rows = supervise(job, numbers, command)
    write_results(target, results)
    return results, rows


def write_results(target: Path, results: Mapping[str, Any]) -> None:
    write_atomically(target, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def ready(prepared: Path, numbers: Numbers, seconds: float) -> Iterator[tuple[Path, list[str]]]:
    """The folder of what all hand-ins share, and what is missing of the sandbox's isolation.

    Args:
        seconds: for computing what `prepared` does not have.

    Raises:
        GraderError, SandboxError: if this machine cannot grade.
    """
    prepare(prepared, numbers, seconds)
    with Sandbox() as sandbox:
        check_packages(sandbox)
        gaps = isolation_gaps(sandbox)
    with tempfile.TemporaryDirectory(prefix="grading-shared-") as folder:
        os.chmod(folder, 0o755)
        yield share(prepared, Path(folder).resolve()).folder, gaps


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A plain name of its own for the folder of each hand-in."""
    folders: dict[str, str] = {}
    for name in names:
        folder = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
        while folder in folders.values():
            folder += "_"
        folders[name] = folder
    return folders


def grade_all(path: Path, output: Path, prepared: Path, settings: Sequence[str], jobs: int) -> dict[str, Any]:
    """Grades all hand-ins, says what is none, and writes the teacher's files; results by name.

    Raises:
        FileNotFoundError: if there are no hand-ins.
        GraderError, SandboxError: if this machine cannot grade.
    """
    numbers = with_settings(Numbers(), settings)
    found, others = hand_ins(path), left_out(path)
    print(*others, sep="\n", end="\n" if others else "")
    folders = folder_names(found)
    files = TeacherFiles(output, folders, numbers, others)
    results, rows = {}, {}
    with ready(prepared, numbers, PREPARE_SECONDS) as (shared, gaps), ThreadPoolExecutor(jobs) as pool:
        for gap in gaps:
            print(f"Note: the sandbox is not complete here, as {gap} (see docs/teacher.md).")
        grade_one = partial(
            grade_into, shared=shared, hidden=[path, output], settings=settings, gaps=gaps,
            seconds=numbers.total_seconds - LAST_SECONDS,
        )  # fmt: skip
        waiting = {}
        for name, hand_in in found.items():
            folder = output / folders[name]
            folder.mkdir(exist_ok=True)
            waiting[name] = pool.submit(grade_one, hand_in, folder / RESULTS)
        for name, future in waiting.items():
            results[name], rows[name] = future.result()
            print(f"{name}: {in_short(results[name])}", flush=True)
            files.write(results, rows)
    return results


def submitted(folder: Path) -> Path:
    """What Gradescope has of a hand-in: the unpacked zip, or the one archive that it did not unpack."""
    there = [path for path in folder.iterdir() if not is_dropping(PurePosixPath(path.name))]
    return there[0] if len(there) == 1 and is_readable_archive(there[0]) else folder


def submission_in(root: Path) -> Submission | None:
    """When a hand-in came and what came before; None, and a sentence for the teacher, if Gradescope does not say."""
    try:
        return read_submission(root / METADATA)
    except MetadataError as error:
        print(f"Note: {error}, so nothing counts as late, and attempts are not counted.")
        return None


def grade_on_gradescope(root: Path, prepared: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Grades what is in `root`/submission and writes `root`/results/results.json, in whatever way this ends."""
    start = time.monotonic()
    numbers = with_settings(Numbers(), settings)
    target = root / "results" / RESULTS
    target.parent.mkdir(exist_ok=True)
    write_results(target, not_graded("the grading was not finished.", numbers))
    submission = submission_in(root)
    stays = results_that_stay(submission, numbers.rules) if submission else None
    if stays:
        write_results(target, stays)
        return stays
    late = days_late(submission, numbers.rules) if submission else 0
    try:
        with ready(prepared, numbers, numbers.gradescope_seconds / 2) as (shared, gaps):
            left = numbers.gradescope_seconds - LAST_SECONDS - (time.monotonic() - start)
            submitted_files = submitted(root / "submission")
            return grade_into(submitted_files, target, shared, [root], settings, gaps, left, days_late=late)[0]
    except (GraderError, SandboxError, OSError) as error:
        print(error, file=sys.stderr)
        results = not_graded("the grader does not work.", numbers)
        write_results(target, results)
        return results


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.autograder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hand_in", type=Path, nargs="?", help="an archive, an unpacked one, or a folder with any number of them")
    add("--output", type=Path, default=Path("build/grades"), help="the folder for the results")
    add("--jobs", type=positive_int, default=1, help="hand-ins at the same time; each needs up to 5 GB")
    add(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="see grades/numbers.py",
    )
    add("--prepared", type=Path, default=PREPARED, help="the folder of what is computed once")
    add("--prepare", action="store_true", help="compute that, and do nothing else")
    add("--gradescope", type=Path, nargs="?", const=Path("/autograder"), metavar="FOLDER", help="grade in its folders")
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return run_job(Job(**json.loads(args.job)))
    try:
        numbers = with_settings(Numbers(), args.settings)
        cores = min(usable_cores(), numbers.gradescope_cores) if args.gradescope else usable_cores()
        os.environ.update(thread_environment(max(1, cores // args.jobs)))  # for all processes that are started
        if args.prepare:
            return prepare(args.prepared, numbers)
        if args.gradescope:
            grade_on_gradescope(args.gradescope, args.prepared, args.settings)
        elif args.hand_in:
            grade_all(args.hand_in, args.output, args.prepared, args.settings, args.jobs)
            print(f"The page: {args.output / PAGE}   The table: {args.output / TABLE}")
        else:
            parser.error("name a hand-in or a folder of them, or give --gradescope")
    except (GraderError, SandboxError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
