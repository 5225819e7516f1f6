"""Writes the student's view of this repository: the assignment, its checks, and no solution.

    python -m grading.starter --output build/starter

What stands between the TODO banners becomes a comment that says what to do and an immediate NotImplementedError; the
rest of those files stays as it is, to the byte. `fill(starter, extract(solution))` gives the solution back. AGENTS.md
tells coding assistants to explain and to ask, and to fill no TODO; --no-assistant-rules leaves it out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from fnmatch import fnmatch
from pathlib import Path

from finetune.argument_types import file_path

from ..files.items import TASK_1
from ..handed_out.banners import TODO_FILES, BannerError, extract, fill, find_places, read_parts, read_source

__all__ = ["StarterError", "blank", "extract", "fill", "strip_outputs", "student_makefile", "write_starter"]

ROOT = Path(__file__).resolve().parents[2]
STUDENT_TESTS = "grading/student_tests"
# What only a starter has, in its root: what coding assistants may do there.
ASSISTANT_RULES = ("AGENTS.md", "CLAUDE.md")
STARTER_TEXTS = Path(__file__).resolve().with_name("texts")
# What the student gets of folders that hold more than the student may see: whole rooms, which know no others; of the
# tests those that need no solution.
STUDENT_PARTS = {
    "grading": ("README.md", "__init__.py", "checks", "files", "hand_in", "handed_out", "report", "student_tests"),
    "tests": (
        "base/test_tiny_sd.py",
        "controlnet/test_metrics.py",
        "data/test_cache.py",
        "data/test_fill50k.py",
        "trainings/test_objective.py",
        "support/processes.py",
        "support/fork_server.py",
    ),  # fmt: skip
}
# Left out: continuous integration, the lecture, which shows the solution, and all weights but the base's.
TEACHER_FILES = (".ci/*", ".github/*", "docs/lecture/*", "*.safetensors", "*.ckpt", "*.pt", "*.pth")
BASE_WEIGHTS = "tiny_sd/*"
TEACHER_TARGETS = ("starter", "autograder", "grade", "docs", "real-size", "lint", "bench", "benchmark")

# What the student reads at each place: a comment, and the error's message.
INSTRUCTIONS = {
    "1": (
        "Set `module` to a convolution of the given channels, kernel size, stride and padding, whose weight and bias "
        "start at zero and are trained.",
        "make the zero convolution",
    ),
    "2": (
        "Copy the UNet's weights into ControlNet's conv_in, time_proj, time_embedding, down_blocks and mid_block. "
        "Copy, do not share: training ControlNet must never change the UNet.",
        "start ControlNet from a copy of the UNet's weights",
    ),
    "3": (
        "Send each feature in `down_block_res_samples` through its own zero convolution, and the mid block's output "
        "`sample` through the mid block's. Set `down_block_res_samples` and `mid_block_res_sample` to the results.",
        "send the features through the zero convolutions",
    ),
    "4-1": (
        "If there is a ControlNet, add each of its residuals to the skip connection of the same place, and set "
        "`down_block_res_samples` to the sums. Mind that the last skip is also the mid block's input `sample`.",
        "add ControlNet's residuals to the skip connections",
    ),
    "4-2": (
        "Add ControlNet's residual for the mid block to the mid block's output, and set `sample` to the sum.",
        "add ControlNet's residual to the mid block's output",
    ),
}


class StarterError(Exception):
    """The starter cannot be written; the message says why."""


def blank(source: str) -> str:
    """The source with a comment and a NotImplementedError between each pair of banners.

    Raises:
        BannerError: for banners that are not pairs.
    """
    parts = {}
    for todo, place in find_places(source).items():
        comment, message = INSTRUCTIONS[todo]
        mark = f"{place.indent}# "
        lines = textwrap.wrap(comment, 120, initial_indent=mark, subsequent_indent=mark)
        lines.append(f'{place.indent}raise NotImplementedError("TODO ({todo}): {message}")')
        parts[todo] = "".join(f"{line}\n" for line in lines)
    return fill(source, parts)


def strip_outputs(notebook: str) -> str:
    """A notebook's JSON without what its cells showed."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
            cell.get("metadata", {}).pop("execution", None)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def student_makefile(makefile: str) -> str:
    """The repository's Makefile for the student, without the teacher's targets."""
    blocks = []
    for block in re.split(r"\n{2,}", makefile.strip("\n")):
        target = re.search(r"^([\w./-]+):(?!=)", block, re.MULTILINE)
        if not target or target[1] not in TEACHER_TARGETS:
            blocks.append(block)
    lines = "\n\n".join(blocks).split("\n")
    for i, line in enumerate(lines):
        if line.startswith(".PHONY:"):
            lines[i] = " ".join(word for word in line.split() if word not in TEACHER_TARGETS)
    return "\n".join(lines) + "\n"


def is_for_students(name: str) -> bool:
    folder, _, inside = name.partition("/")
    if folder in STUDENT_PARTS:
        return any(inside == part or inside.startswith(f"{part}/") for part in STUDENT_PARTS[folder])
    return fnmatch(name, BASE_WEIGHTS) or not any(fnmatch(name, pattern) for pattern in TEACHER_FILES)


def student_files(root: Path) -> list[str]:
    """The names of the tracked files that students get.

    Raises:
        StarterError: if `root` is no git checkout.
    """
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listing = subprocess.run(command, capture_output=True)
    if listing.returncode:
        raise StarterError(f"{root} must be a git checkout: {listing.stderr.decode().strip()}")
    tracked = [name for name in listing.stdout.decode().split("\0") if name and (root / name).is_file()]
    return sorted(filter(is_for_students, tracked))


def student_text(name: str, path: Path) -> str | None:
    """What a file says in the starter, where that is not what it says here."""
    if name in [f"{TASK_1}/{todo_file}" for todo_file in TODO_FILES]:
        return blank(read_source(path))
    if name.endswith(".ipynb"):
        return strip_outputs(read_source(path))
    return student_makefile(read_source(path)) if name == "Makefile" else None


def check_replaceable(output: Path) -> None:
    """Raises StarterError unless `output` is not there, empty, or a starter that nobody has worked in."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / STUDENT_TESTS).is_dir() or (output / "grading" / "starter").exists():
        raise StarterError(f"{output} is there and is not a starter: choose another folder, or delete it.")
    try:
        parts = read_parts(output / TASK_1)
    except BannerError:
        parts = {"?": ""}
    used = any((output / name).exists() for name in (".venv", "runs"))  # trained models: days of work
    if used or any("NotImplementedError" not in part for part in parts.values()):
        raise StarterError(f"Somebody has worked in {output}: choose another folder, or delete it.")


def write_starter(output: Path, root: Path = ROOT, assistant_rules: bool = True) -> list[str]:
    """Writes the starter, in place of an older one, and returns the names of its files.

    `assistant_rules`: with AGENTS.md and CLAUDE.md.

    Raises:
        StarterError: if `output` holds something else, or `root` is no git checkout.
        BannerError: if a TODO's banners are damaged.
    """
    check_replaceable(output)
    names = student_files(root)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        whole = Path(folder) / "starter"
        for name in names:
            target = whole / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
            text = student_text(name, root / name)
            if text is not None:
                target.write_bytes(text.encode("utf-8"))
        for name in ASSISTANT_RULES if assistant_rules else ():
            shutil.copy2(STARTER_TEXTS / name, whole / name)
            names.append(name)
        if output.exists():
            shutil.rmtree(output)
        whole.replace(output)
    return names


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.starter", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=file_path, default=Path("build/starter"), help="the starter's folder (%(default)s)"
    )
    parser.add_argument("--no-assistant-rules", action="store_true", help="leave out AGENTS.md and CLAUDE.md")
    args = parser.parse_args()
    try:
        names = write_starter(args.output, assistant_rules=not args.no_assistant_rules)
    except (StarterError, BannerError, OSError) as error:
        sys.exit(f"Error: {error}")
    print(f"{len(names)} files are in {args.output}; `make test` there checks the five TODO places.")
