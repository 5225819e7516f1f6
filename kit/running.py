"""Runs a command to its end, and stops as it does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent


class Stopped(Exception):
    """What was asked for is not done: the message says why, `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def run(command: Sequence[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None) -> None:
    """Runs a command in a folder, with more variables of the environment, and waits for it, whatever that takes.

    Ctrl-C reaches the command itself, which may want to save something first; a SIGTERM is passed on to it.

    Raises:
        Stopped: if it cannot be started or fails, or if it was asked to stop, however well it ended.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    print(f"{folder.name}$ {shlex.join(command)}", flush=True)
    try:
        process = subprocess.Popen(list(command), cwd=folder, env={**os.environ, **(environment or {})})
    except OSError as error:
        raise Stopped(f"Cannot start {command[0]}: {error.strerror}.") from error
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Stopped("Stopped. Start the same command again: a training goes on where it was.", 128 + asked[0])
    if status:
        raise Stopped(f"{' '.join(command[:4])} ... failed; what it said stands above.", status if status > 0 else 1)
