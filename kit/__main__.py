"""`python -m kit COMMAND`: see `python -m kit --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import PurePath
from typing import Callable

from . import commands
from .environment import COURSE, TODAY, Environment, default_python
from .running import Stopped

EPILOG = """The first command makes .venv and installs requirements.txt, which takes some minutes. Without a CUDA GPU,
--torch-index with the address of the CPU index from PyTorch's page (or TORCH_INDEX in the environment) makes it 1 GB
instead of 6.5 GB on Linux; without it nothing changes."""


def path(text: str) -> PurePath:
    """A path; shells leave `~` as it is where it stands behind `--output=`."""
    return PurePath(os.path.expanduser(text))


def parser() -> argparse.ArgumentParser:
    """The commands that are of use here: a starter has none of the teacher's."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--torch-index",
        default=os.environ.get("TORCH_INDEX") or None,
        metavar="ADDRESS",
        help="take PyTorch and torchvision from this index when the environment is made",
    )
    shared.add_argument("--python", default=None, metavar="FILE", help="make the environment with this interpreter")
    whole = argparse.ArgumentParser(
        "python -m kit",
        description="Makes the environment where it is not there, and runs a command in it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = whole.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser
    add("environment", parents=[shared], help="only makes .venv")
    demo = add("demo", parents=[shared], help="trains a ControlNet on the embedded base, draws and scores")
    demo.add_argument(
        "--output", type=path, default=PurePath("runs/demo"), metavar="DIR", help="where it all goes (%(default)s)"
    )
    demo.add_argument(
        "--base", type=path, default=PurePath("tiny_sd"), metavar="DIR", help="the base model (%(default)s)"
    )
    page = add("page", parents=[shared], help="a page in the browser: draw an outline, and see the ControlNet obey")
    page.add_argument(
        "--base",
        type=os.path.expanduser,
        default="tiny_sd",
        metavar="MODEL",
        help="folder, file, or hub name (%(default)s)",
    )
    page.add_argument("--host", default="127.0.0.1", help="listen here (%(default)s: only for this machine)")
    page.add_argument("--port", default="7860", help="and at this port (%(default)s)")
    tests = add(
        "test", parents=[shared], help="the checks of the TODO places" if commands.is_starter() else "all tests"
    )
    tests.add_argument("files", nargs="*", metavar="FILE", help="only the tests in these")
    add("test-course", parents=[shared], help="the tests on Python 3.8 with the course's pins, in .venv-course")
    if not commands.is_starter():
        add_teachers(add, shared)
    return whole


def add_teachers(add: Callable[..., argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    add("starter", parents=[shared], help="writes build/starter: this repository without the solution")
    add("autograder", parents=[shared], help="writes build/autograder.zip for Gradescope")
    grade = add("grade", parents=[shared], help="grades hand-ins")
    grade.add_argument("hand_ins", nargs="?", default="hand_ins", help="a folder of them, or one (%(default)s)")
    grade.add_argument("--jobs", metavar="NUMBER", help="so many hand-ins at the same time")
    add("docs", parents=[shared], help="the lecture's pages with the code that the files hold today")
    add("real-size", parents=[shared], help="all at Stable Diffusion 1.4's size, within 22 GB and half an hour")


def start(args: argparse.Namespace, environment: Environment) -> None:
    if args.command == "demo":
        commands.demo(environment, args.output, args.base)
    elif args.command == "page":
        commands.page(environment, args.base, args.host, args.port)
    elif args.command == "test":
        commands.test(environment, args.files)
    elif args.command == "test-course":
        commands.test_course(environment)
    elif args.command == "starter":
        commands.program(environment, "grading.starter", ["--output", "build/starter"])
    elif args.command == "autograder":
        commands.program(environment, "grading.gradescope", ["--output", "build/autograder.zip"])
    elif args.command == "grade":
        commands.grade(environment, args.hand_ins, args.jobs)
    elif args.command == "docs":
        commands.program(environment, "docs/lecture/show_code.py", [])
    elif args.command == "real-size":
        commands.program(environment, "tests/real_size.py", [])


def main() -> None:
    args = parser().parse_args()
    environment = COURSE if args.command == "test-course" else TODAY
    try:
        environment.prepare(args.python or default_python(environment), args.torch_index)
        start(args, environment)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.status)


if __name__ == "__main__":
    main()
