"""The rooms of grading/: each knows only those on lower floors; what people type to start them works."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from graphlib import TopologicalSorter

from grading.starter.make import STUDENT_PARTS

ROOT = Path(__file__).resolve().parents[2]
GRADING = ROOT / "grading"
# From the ground up; a new room gets its place here, and its lines in grading/README.md.
FLOORS = (
    ("report",),
    ("files", "sandbox", "gradescope"),
    ("handed_out",),
    ("checks", "hand_in", "starter", "questions", "grades"),
    ("contest", "points", "compare"),
    ("autograder", "student_tests"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = (
    "checks",
    "hand_in",
    "report",
    "autograder",
    "starter",
    "gradescope",
    "handed_out",
    "questions",
    "contest",
    "points",
    "compare",
)
# A folder with more files than this is no room that a stranger walks through.
MAX_FILES = 12
# How programs call what gives a parser its flags.
ADDING = ("add_argument", "add")


def rooms() -> list[str]:
    """The folders of grading/, without those of which only a cache is left."""
    return sorted(path.name for path in GRADING.iterdir() if any(path.rglob("*.py")))


def modules() -> dict[str, Path]:
    """All modules of the rooms by their dotted names; a package's `__init__` has the package's."""
    paths = [path for room in rooms() for path in (GRADING / room).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", ""): path for path in paths}


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of grading/ that one of them imports, wherever in it the import stands."""
    path, found = MODULES[name], set()
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "grading"} & MODULES.keys()


def room_of(name: str) -> str:
    return name.split(".")[1]


def test_every_room_has_a_floor_and_is_explained():
    assert rooms() == sorted(FLOOR_OF)
    readme = (GRADING / "README.md").read_text(encoding="utf-8")
    assert not [room for room in FLOOR_OF if f"`{room}/`" not in readme]
    assert sorted(path.name for path in GRADING.iterdir() if path.is_file()) == ["README.md", "__init__.py"]
    assert {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")} <= FLOOR_OF.keys()


@pytest.mark.parametrize("name", MODULES)
def test_arrows_lead_downwards_only(name):
    others = {other: room_of(other) for other in imported(name) if room_of(other) != room_of(name)}
    assert not [other for other, room in others.items() if FLOOR_OF[room] >= FLOOR_OF[room_of(name)]]
    if room_of(name) in STUDENT_PARTS["grading"]:
        assert not [other for other, room in others.items() if room not in STUDENT_PARTS["grading"]]


def test_the_arrows_are_found():
    """The other tests mean something only if imports are read: relative and absolute ones, also inside functions."""
    assert {"grading.checks.run", "grading.sandbox.limits"} < imported("grading.autograder.todos")
    assert "grading.handed_out.banners" in imported("grading.student_tests.test_todos")


def test_modules_stand_in_no_circle():
    order = list(TopologicalSorter({name: imported(name) - {name} for name in MODULES}).static_order())
    assert order.index("grading.files.items") < order.index("grading.autograder.run")


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_not_crowded(room):
    for folder in [GRADING / room, *(path for path in (GRADING / room).rglob("*") if path.is_dir())]:
        assert len([path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"]) <= MAX_FILES


def flags_without_help(path: Path) -> list[str]:
    """What a program may be given, and its --help does not explain."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        adds = isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ADDING
        if adds and node.args and not any(keyword.arg == "help" for keyword in node.keywords):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.args[0])}")
    return found


def test_help_explains_everything_that_can_be_typed():
    files = [path for folder in ("grading", "kit", "page") for path in (ROOT / folder).rglob("*.py")]
    typed = [path for path in files if "argparse" in path.read_text(encoding="utf-8") and "programs" not in path.parts]
    assert len(typed) > 11
    assert not [flag for path in typed for flag in flags_without_help(path)]


@pytest.mark.parametrize("room", COMMANDS)
def test_the_command_is_what_its_usage_says(room):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"grading.{room}", "--help"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.startswith(f"usage: python -m grading.{room} "), run.stderr
