"""Grades hand-ins by the assignment's rubric, on a machine without a GPU.

    python -m grading.autograder HAND_IN.zip --output build/grades        # one, or a folder of them, also in folders
    python -m grading.autograder FOLDER --set train_steps=900 --jobs 2    # with another number of grades/numbers.py
    python -m grading.autograder FOLDER --quick                           # what is wrong at first sight, and no points
    python -m grading.autograder --gradescope                             # what run_autograder does

For each hand-in it writes results.json, and for the teacher grades.csv and index.html, a page with the pictures. Each
is graded by a process of its own: whatever happens to that, there are results. Stopped and started again, it goes on
with those that it has no results of. As root, student's code runs as another user (see grading/sandbox/).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterable, Iterator, Sequence

from finetune.argument_types import file_path, positive_int

from ..files.archive import is_dropping
from ..files.collection import hand_ins, is_readable_archive, left_out
from ..grades.by_hand import utc_now
from ..grades.numbers import Numbers, with_settings
from ..grades.results import in_short, not_graded
from ..grades.submission import METADATA, MetadataError, Submission, days_late, read_submission, results_that_stay
from ..grades.teacher_files import TeacherFiles
from ..grades.teacher_page import anchors_of
from ..sandbox.cores import thread_environment, usable_cores
from ..sandbox.isolation import check_packages, isolation_gaps
from ..sandbox.limits import SandboxError
from ..sandbox.sandbox import Sandbox
from ..sandbox.start import warm_python
from ..sandbox.trusted import ROOT, GraderError
from .alignment import PREPARE_SECONDS, share
from .earlier_results import digest_of, grader_key, keep, key_of, last_change, take_up
from .job import LAST_SECONDS, RESULTS, Job, grade_into, run_job, stop_all, write_results
from .loras import keep_plain
from .proof.prove import find_reference, make_reference, prepare_once

PREPARED = ROOT / "build" / "prepared"
GRADESCOPE = "grade what is in its submission/, as on Gradescope (/autograder), into its results/"
MOST_BYTES = 200  # of the name of a hand-in's folder: file systems take 255
# The environment of the process that all programs are forked from.
PLAIN_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Ready:
    """What grading needs: the folder of what all hand-ins share, what is missing of the sandbox's isolation, and the
    folders of the right solution's results and of the base model's pictures, if these are kept."""

    shared: Path
    gaps: list[str]
    reference: Path | None = None
    plain: Path | None = None


def prepare_all(prepared: Path, numbers: Numbers, seconds: float, train: bool = True) -> dict[str, Path | None]:
    """Computes what is the same for all hand-ins and not in `prepared` yet; the folders by the names in `Ready`.

    Args:
        train: whether the right solution is trained for the proof, where that has not been done.

    Raises:
        GraderError: if that does not work.
    """
    prepared.mkdir(parents=True, exist_ok=True)
    with (prepared / ".preparing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two gradings may start at the same time
        prepare_once(prepared, numbers, seconds)
        plain = keep_plain(prepared, numbers, seconds)
        reference = find_reference(prepared, numbers) if numbers.prove else None
        if numbers.prove and train and not reference:
            print("Once: the right solution is trained, where many hand-ins end. That takes some minutes.", flush=True)
            reference = make_reference(prepared, numbers, numbers.total_seconds)
    return {"reference": reference.folder if reference else None, "plain": plain}


@contextmanager
def ready(prepared: Path, numbers: Numbers, seconds: float, train: bool = True, quick: bool = False) -> Iterator[Ready]:
    """Prepares the grading, all of it or what a quick look needs.

    Args:
        seconds: for computing what `prepared` does not have.
        train: see `prepare_all`.

    Raises:
        GraderError, SandboxError: if this machine cannot grade.
    """
    with Sandbox() as sandbox:
        check_packages(sandbox)
        gaps = isolation_gaps(sandbox)
    if quick:
        yield Ready(ROOT, gaps)
        return
    kept = prepare_all(prepared, numbers, seconds, train)
    with tempfile.TemporaryDirectory(prefix="grading-shared-") as folder:
        os.chmod(folder, 0o755)
        yield Ready(share(prepared, Path(folder).resolve()).folder, gaps, **kept)


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A plain name of its own for the folder of each hand-in."""
    folders: dict[str, str] = {}
    for name in names:
        folder = re.sub(r"[^\w.-]", "_", name).lstrip(".").encode()[:MOST_BYTES].decode(errors="ignore") or "_"
        while folder in folders.values():
            folder += "_"
        folders[name] = folder
    return folders


def grade_all(
    path: Path, output: Path, prepared: Path, settings: Sequence[str], jobs: int, quick: bool = False
) -> dict[str, Any]:
    """Grades all hand-ins that have no results yet, says what is none, and writes the teacher's files; results by name.

    Raises:
        FileNotFoundError: if there are no hand-ins.
        GraderError, SandboxError: if this machine cannot grade.
    """
    numbers = with_settings(Numbers(), settings)
    found, others = hand_ins(path), left_out(path)
    print(*(f"{sentence}\n" for sentence in others), sep="", end="")
    names = folder_names(found)
    files = TeacherFiles(output, names, numbers, others, path)
    with ready(prepared, numbers, PREPARE_SECONDS, quick=quick) as means:
        for gap in means.gaps:
            print(f"Note: the sandbox is not complete here, as {gap} (see docs/teacher.md).")
        grader = grader_key(numbers, quick)
        graded = partial(
            grade_or_take_up, grader=grader, means=means, hidden=[path, output, prepared],
            settings=settings, seconds=numbers.total_seconds - LAST_SECONDS, quick=quick,
        )  # fmt: skip
        folders = {name: output / folder for name, folder in names.items()}
        # Those of an earlier start are in the table from the first on: it may be stopped before it comes to them.
        taken_up = {name: earlier(found[name], folders[name], grader) for name in found}
        done = {name: known for name, known in taken_up.items() if known}
        for name, result in in_parallel(lambda name: graded(found[name], folders[name]), found, jobs):
            done[name] = result
            results, rows = ({known: done[known][i] for known in found if known in done} for i in range(2))
            files.write(results, rows)
    if len(found) > 1 and not quick:
        from ..compare.run import likeness_section  # with libraries that grading one hand-in does not need

        files.write(results, rows, likeness_section(found, output / ".compared", jobs, anchors_of(found)))
    return {name: done[name][0] for name in found}


def earlier(hand_in: Path, folder: Path, grader: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """What an earlier start found out about a hand-in, if that still holds."""
    try:
        return take_up(folder, key_of(digest_of(hand_in), grader))
    except OSError:  # told when it is its turn
        return None


def grade_or_take_up(
    hand_in: Path,
    folder: Path,
    grader: str,
    means: Ready,
    hidden: Sequence[Path],
    settings: Sequence[str],
    seconds: float,
    quick: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and pictures of one hand-in, from its folder if they are there already."""
    folder.mkdir(exist_ok=True)
    try:
        content = digest_of(hand_in)
    except OSError as error:  # no reason to stop grading the others
        unread = not_graded(f"this machine cannot read it ({error.strerror}).", with_settings(Numbers(), settings))
        write_results(folder / RESULTS, unread)
        return unread, []
    key = key_of(content, grader)
    known = take_up(folder, key)
    if known is None:
        changed = last_change(folder, content, utc_now())
        known = grade_into(
            hand_in, folder / RESULTS, means.shared, hidden, settings, means.gaps, seconds, quick=quick,
            reference=means.reference, plain=means.plain,
        )  # fmt: skip
        if changed:  # points that were given by hand before were given for other files
            known[0]["extra_data"]["changed"] = changed
            write_results(folder / RESULTS, known[0])
        keep(folder, key, known[1], content, changed)
    return known


def in_parallel(
    grade: Callable[[str], tuple[dict[str, Any], Any]], names: Iterable[str], jobs: int
) -> Iterator[tuple[str, tuple[dict[str, Any], Any]]]:
    """Grades so many at the same time, and tells of each as it is done, with what is left."""
    start, pool = time.monotonic(), ThreadPoolExecutor(jobs)
    waiting = {pool.submit(grade, name): name for name in names}
    try:
        for number, future in enumerate(as_completed(waiting), 1):
            name, left = waiting[future], len(waiting) - number
            minutes = (time.monotonic() - start) / number * left / 60
            about = f" ({number} of {len(waiting)}, about {minutes:.0f} min left)" if left else ""
            print(f"{name}: {in_short(future.result()[0])}{about}", flush=True)
            yield name, future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_all()
        raise
    finally:
        pool.shutdown()


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
        with ready(prepared, numbers, numbers.gradescope_seconds / 2, train=False) as means:
            left = numbers.gradescope_seconds - LAST_SECONDS - (time.monotonic() - start)
            submitted_files = submitted(root / "submission")
            return grade_into(
                submitted_files, target, means.shared, [root, prepared], settings, means.gaps, left, days_late=late,
                reference=means.reference, plain=means.plain,
            )[0]  # fmt: skip
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
    add("hand_in", type=file_path, nargs="?", help="an archive, an unpacked one, or a folder with any number of them")
    add("--output", type=file_path, help="the folder for the results (build/grades; of a quick look build/quick)")
    add("--quick", action="store_true", help="TODO places, report and LoRA files only: what is wrong, and no points")
    add("--jobs", type=positive_int, default=1, help="hand-ins at the same time; each needs up to 5 GB (%(default)s)")
    add(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
        help="another number of grading/grades/numbers.py, or rule of rules.toml, for this run; may be repeated",
    )  # fmt: skip
    add("--prepared", type=file_path, default=PREPARED, help="the folder of what is computed once (build/prepared)")
    add("--prepare", action="store_true", help="compute that, and do nothing else")
    add("--gradescope", type=file_path, nargs="?", const=Path("/autograder"), metavar="FOLDER", help=GRADESCOPE)
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return run_job(Job(**json.loads(args.job)))
    try:
        numbers = with_settings(Numbers(), args.settings)
        cores = min(usable_cores(), numbers.gradescope_cores) if args.gradescope else usable_cores()
        os.environ.update(thread_environment(max(1, cores // args.jobs)))  # for all processes that are started
        with warm_python(PLAIN_ENVIRONMENT):
            grade_as_asked(args, numbers, parser)
    except KeyboardInterrupt:
        sys.exit("Stopped. What is graded is kept: the same command goes on from here.")
    except (GraderError, SandboxError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def grade_as_asked(args: argparse.Namespace, numbers: Numbers, parser: argparse.ArgumentParser) -> None:
    if args.prepare:
        prepare_all(args.prepared, numbers, PREPARE_SECONDS)
    elif args.gradescope:
        if args.hand_in or args.output or args.quick:
            parser.error("--gradescope has its own folders and gives points: it takes no hand-in, --output or --quick")
        grade_on_gradescope(args.gradescope, args.prepared, args.settings)
    elif args.hand_in:
        output = args.output or Path("build") / ("quick" if args.quick else "grades")
        grade_all(args.hand_in, output, args.prepared, args.settings, args.jobs, args.quick)
        print(f"The page: {output / 'index.html'}   The table: {output / 'grades.csv'}")
    else:
        parser.error("name a hand-in or a folder of them, or give --gradescope")
