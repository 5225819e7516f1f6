"""What each command runs; the environment is there by then."""

from __future__ import annotations

import signal
from pathlib import Path, PurePath
from typing import Sequence

from .environment import Environment
from .running import ROOT, Stopped, run

# One thread for each process of the tests: threads of several would wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TESTS = ("-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--durations", "20")
STUDENT_TESTS = "grading/student_tests"
# What is trained, and how, stands in finetune/presets.py.
TRAINING = "--preset demo --resume_from_checkpoint latest".split()
# Six steps: with eight the IoU of 200 held-out pictures is the same, 0.963, with five 0.959 (docs/log.md).
DRAWING = "--guidance_scale 1.5 --unconditional base --num_inference_steps 6".split()


def is_starter(root: Path = ROOT) -> bool:
    """Whether this is a student's copy, without the solution and its tests."""
    return not (root / "grading" / "starter").is_dir()


def demo(environment: Environment, output: PurePath, base: PurePath) -> None:
    """Trains, or goes on with the run that is there, then draws and scores. Both folders as seen from the root."""
    task_1, out, base_model = ROOT / "task_1_controlnet", PurePath("..") / output, str(PurePath("..") / base)
    trained = ["--pretrained_model_name_or_path", base_model, "--output_dir", str(out)]
    run([environment.python, "train.py", *TRAINING, *trained], task_1)
    drawn = ["--base", base_model, "--controlnet", str(out / "controlnet"), *DRAWING, "--output_dir", str(out)]
    run([environment.python, "evaluate.py", *drawn], task_1)


def page(environment: Environment, base: str, host: str, port: str) -> None:
    """Installs what the page needs, and serves it until Ctrl-C, which is its end and no failure."""
    environment.add(ROOT / "requirements-page.txt")
    try:
        run([environment.python, "-m", "page", "--base", base, "--host", host, "--port", port])
    except Stopped as stopped:
        if stopped.status != 128 + signal.SIGINT:
            raise


def test(environment: Environment, files: Sequence[str] = ()) -> None:
    """The style and all tests, or those of some files; in a starter the checks of the five TODO places."""
    if files:
        return run([environment.python, *TESTS, "--", *files], environment=ONE_THREAD)
    if is_starter():
        return run([environment.python, "-m", "pytest", "-q", STUDENT_TESTS], environment=ONE_THREAD)
    run([environment.python, "-m", "ruff", "check", "."])
    run([environment.python, "-m", "ruff", "format", "--check", "."])
    run([environment.python, *TESTS], environment=ONE_THREAD)


def test_course(environment: Environment) -> None:
    """The tests of what runs on the course's environment."""
    left_out = ["--ignore", "tests/grading", "--ignore-glob", "tests/repository/test_benchmarks*"]
    tests = [STUDENT_TESTS] if is_starter() else left_out
    run([environment.python, *TESTS, *tests], environment=ONE_THREAD)


def grade(environment: Environment, hand_ins: str, jobs: str | None) -> None:
    """Grades into build/grades, so many hand-ins at the same time, or as many as the grader does by itself."""
    more = [f"--jobs={jobs}"] if jobs else []
    program(environment, "grading.autograder", ["--output", "build/grades", *more, "--", hand_ins])


def program(environment: Environment, name: str, arguments: Sequence[str]) -> None:
    """One of the repository's programs: a module to be run by `-m`, or a file."""
    how = [name] if name.endswith(".py") else ["-m", name]
    run([environment.python, *how, *arguments])
