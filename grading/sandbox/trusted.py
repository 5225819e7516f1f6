"""Runs this repository's own programs, unchanged, in other processes. No student's code comes near them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Sequence

from .cores import thread_environment
from .start import end_session, start_python

ROOT = Path(__file__).resolve().parents[2]
TAIL_CHARACTERS = 2000


class GraderError(Exception):
    """Grading itself does not work, whatever was handed in; the message is for the teacher."""


def run_trusted(arguments: Sequence[str], folder: Path, seconds: float, threads: int | None = None) -> str:
    """Runs Python with the arguments in `folder`, for at most so many seconds; what it printed.

    It computes with so many threads, or with as many as this process was told to use.

    Raises:
        GraderError: if it fails or takes longer.
    """
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **thread_environment(threads), **own}
    name = arguments[1] if arguments[0] == "-m" else arguments[0]
    with tempfile.TemporaryFile() as printed:
        process = start_python(arguments, folder, environment, printed.fileno())
        try:
            code = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            raise GraderError(f"{name} took longer than {seconds:.0f} s.") from None
        finally:
            end_session(process)
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    if code:
        raise GraderError(f"{name} failed: {output[-TAIL_CHARACTERS:].strip()}")
    return output
