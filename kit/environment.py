"""Makes the virtual environments, and makes them anew where their requirements have changed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .running import ROOT, Stopped, run

# They must come from the same index: a PyTorch for CUDA and a torchvision without it do not load together.
TOGETHER = ("torch", "torchvision")
USUAL = "the usual index"


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its folder, what is installed in it, and with which Python."""

    folder: Path
    requirements: Path
    versions: str
    first: tuple[int, int]
    last: tuple[int, int]

    @property
    def python(self) -> str:
        """Its interpreter, as venv places it on this system."""
        return str(self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

    @property
    def stamp(self) -> Path:
        """Written last; says where PyTorch came from, and of what it was made."""
        return self.folder / "ready"

    def stamped(self) -> list[str]:
        return self.stamp.read_text(encoding="utf-8").splitlines() if self.stamp.is_file() else []

    def is_ready(self) -> bool:
        """Whether it was made of these requirements in this folder, and its Python is still there."""
        # Not by the files' times, which a copy or a checkout sets anew. A copied folder's `finetune` is the old one's.
        return self.stamped()[1:] == [digest(self.requirements, ROOT / "pyproject.toml")] and self.runs()

    def runs(self) -> bool:
        """Whether its interpreter starts: after an upgrade of the system it may point to one that is gone."""
        return works(self.python, "-c", "")

    def prepare(self, python: str, torch_index: str | None) -> None:
        """Makes it with that interpreter unless it is there; PyTorch and torchvision from the index that is given.

        Raises:
            Stopped: if the interpreter is not of a version that it can be made with, if a step fails, or if it is there
                with PyTorch from another index.
        """
        if torch_index is not None and not is_index(torch_index):
            raise Stopped(f"TORCH_INDEX is {torch_index!r}: give the address of an index, or leave it away.")
        came_from = next(iter(self.stamped()), None)
        if came_from is not None and torch_index is not None and (came_from or USUAL) != torch_index:
            raise Stopped(
                f"{self.folder.name} is there, with PyTorch from {came_from or USUAL}: remove {self.folder.name} first "
                f"to take it from {torch_index}."
            )
        if self.is_ready():
            return
        if not works(self.python, "-m", "pip", "--version"):
            self.require_version(python)
            dead = self.folder.exists() and not self.runs()  # one without pip is somebody's, and only gets it
            run([python, "-m", "venv", *(["--clear"] if dead else []), str(self.folder)])
        index = torch_index if torch_index is not None else came_from or ""
        if index not in ("", USUAL):
            run([self.python, "-m", "pip", "install", f"--index-url={index}", *self.wanted_together()])
        run([self.python, "-m", "pip", "install", "-r", str(self.requirements)])
        made_of = digest(self.requirements, ROOT / "pyproject.toml")
        self.stamp.write_text(f"{index or USUAL}\n{made_of}\n", encoding="utf-8")

    def add(self, more: Path) -> None:
        """Installs, beside the rest, what one command alone needs; again where either list was changed.

        Raises:
            Stopped: if that fails.
        """
        stamp, made_of = self.folder / f"{more.stem}.ready", digest(more, self.stamp)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
            return
        run([self.python, "-m", "pip", "install", "-r", str(more)])
        stamp.write_text(made_of, encoding="utf-8")

    def require_version(self, python: str) -> None:
        """Raises Stopped unless the interpreter is one that the requirements are for."""
        program = f"import sys; sys.exit(not {self.first} <= sys.version_info[:2] <= {self.last})"
        if not works(python, "-c", program):
            raise Stopped(
                f"{self.folder.name} needs {self.versions}, which {python} is not: name one, "
                f"{'PYTHON_COURSE' if self is COURSE else 'PYTHON'}=/path/to/python with make, --python without."
            )

    def wanted_together(self) -> list[str]:
        """The lines of the requirements that the index of PyTorch is asked for."""
        lines = [line.partition("#")[0].strip() for line in self.requirements.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if re.split(r"[^\w-]", line)[0] in TOGETHER]


def digest(*files: Path, root: Path | None = None) -> str:
    """Of the files' contents, and of where the repository lies."""
    return hashlib.sha256(b"\0".join([str(root or ROOT).encode(), *(file.read_bytes() for file in files)])).hexdigest()


def is_index(text: str) -> bool:
    """Whether it can be the address of an index: no flag, nothing with spaces."""
    return bool(re.fullmatch(r"(https?|file)://[^\s]+", text))


def works(*command: str) -> bool:
    """Whether a command starts and ends well; what it says is of no interest."""
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


TODAY = Environment(ROOT / ".venv", ROOT / "requirements.txt", "Python 3.10 or later", (3, 10), (3, 99))
COURSE = Environment(ROOT / ".venv-course", ROOT / "requirements-course.txt", "Python 3.8", (3, 8), (3, 8))


def default_python(environment: Environment) -> str:
    """What makes it where nobody says: this interpreter, or the course's by its usual name."""
    return "python3.8" if environment is COURSE and sys.version_info[:2] != (3, 8) else sys.executable
