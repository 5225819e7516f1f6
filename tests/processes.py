"""Training programs: in this process, or as real ones, which can really be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Callable

import torch
from accelerate.state import AcceleratorState

from finetune.setup import fail_clearly

ROOT = Path(__file__).resolve().parent.parent
BASE = str(ROOT / "tiny_sd")


def call(main: Callable[[], None], *flags: str) -> tuple[int, str]:
    """A training program in this process: its exit status, and all it said."""
    said, status, argv = StringIO(), 0, sys.argv
    sys.argv = [sys.modules[main.__module__].__file__, *flags]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with redirect_stdout(said), redirect_stderr(said), fail_clearly():
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        said.write(end.code if isinstance(end.code, str) else "")
    finally:
        sys.argv = argv
    return status, said.getvalue()


class Program:
    """A training program with the flags that all its test runs share."""

    def __init__(self, folder: str, script: str, flags: list[str]) -> None:
        self.folder = ROOT / folder
        self.command = [sys.executable, script, *flags]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(self, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        """To the end, whatever that is."""
        return subprocess.run(
            [*self.command, "--output_dir", str(output_dir), *flags],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def train(self, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        """To the end, which must be a good one."""
        run = self.run(output_dir, *flags)
        assert run.returncode == 0, run.stdout + run.stderr
        return run

    def start(self, output_dir: Path, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.command, "--output_dir", str(output_dir), *flags],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def losses(output_dir: Path) -> list[float]:
    return scalars(output_dir, "loss")


def scalars(output_dir: Path, name: str) -> list[float]:
    """A curve in TensorBoard's logs of a run; beside it lie the flags, in a folder of their own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for folder in {path.parent for path in (output_dir / "logs").rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        if name in events.Tags()["scalars"]:
            found.append([event.value for event in events.Scalars(name)])
    (curve,) = found
    return curve
