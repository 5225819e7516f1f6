"""Runs this repository's own programs, unchanged, in other processes. No student's code comes near them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Sequence

from .cores import thread_environment

ROOT = Path(__file__).resolve().parents[2]
TAIL_CHARACTERS = 2000


class GraderError(Exception):
    """Grading itself does not work, whatever was handed in; the message is for the teacher."""


def run_trusted(arguments: Sequence[str], folder: Path, seconds: float) -> str:
    """Runs Python with the arguments in `folder`, for at most so many seconds; what it printed.

    Raises:
        GraderError: if it fails or takes longer.
    """
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **thread_environment(), **own}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    name = " ".join(arguments[:1])
    try:
        output = process.communicate(timeout=max(seconds, 1))[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        raise GraderError(f"{name} took longer than {seconds:.0f} s.") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise GraderError(f"{name} failed: {output[-TAIL_CHARACTERS:].strip()}")
    return output
