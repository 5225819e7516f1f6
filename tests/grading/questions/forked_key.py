"""The key's process, forked from this one, which has imported PyTorch: nine tenths of the time of a fresh Python.

As a program, `forked_key.py ARGUMENTS` does what `python -m grading.questions` does, with such a key.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, Sequence, TextIO

# Which of them it gets is decided by its path, as in a fresh Python.
OWN = ("diffusion", "grading.questions.key", "grading.questions.models")


class ForkedKey:
    """As `subprocess.Popen`, so far as the program uses it, for `python -m MODULE`."""

    def __init__(
        self, command: Sequence[str], stdin: TextIO, stderr: TextIO, cwd: Path, env: dict[str, str], **_: Any
    ) -> None:
        reading, writing = os.pipe()
        _, flag, module = command
        assert flag == "-m"
        start = multiprocessing.get_context("fork").Process
        self.process = start(target=become, args=(module, (stdin.fileno(), writing, stderr.fileno()), cwd, env))
        self.process.start()
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def __enter__(self) -> ForkedKey:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode


def become(module: str, files: Sequence[int], folder: Path, environment: dict[str, str]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    for name in [name for name in sys.modules if name in OWN or name.partition(".")[0] in OWN]:
        del sys.modules[name]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    subprocess.Popen = ForkedKey
    runpy.run_module("grading.questions", run_name="__main__", alter_sys=True)
