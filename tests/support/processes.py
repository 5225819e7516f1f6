"""Training programs: in this process, or as real ones, which can really be killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from accelerate.state import AcceleratorState

from finetune.setup import fail_clearly

ROOT = Path(__file__).resolve().parents[2]
BASE = str(ROOT / "tiny_sd")
WRAPPERS = ROOT / "tests" / "support" / "wrappers"
# What has used a GPU cannot be forked, and on other systems PyTorch's libraries cannot.
FORKS = sys.platform == "linux" and not torch.cuda.is_available()


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


class ForkServer:
    """The process of `fork_server.py`; it ends with this one, when nothing can come any more."""

    def __init__(self) -> None:
        # What is compiled is compiled in the program itself: other processes for that would import PyTorch again.
        once = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._stderr = tempfile.NamedTemporaryFile(prefix="said-")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "fork_server.py")], env={**os.environ, **once},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
        )  # fmt: skip

    def ask(self, **request: Any) -> int | None:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.complaints()
        return json.loads(answer)

    def complaints(self) -> str:
        """What was said while the libraries were imported, and of what went wrong."""
        return Path(self._stderr.name).read_text(errors="replace")


@lru_cache(maxsize=None)
def fork_server() -> ForkServer:
    """One for all the tests of this process."""
    return ForkServer()


class Forked:
    """A program that the fork server started, with what the tests need of `Popen`."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], stderr: bool) -> None:
        self.args = command
        self.stdout, self._stderr = (tempfile.NamedTemporaryFile(prefix="said-") for _ in range(2))
        self.returncode: int | None = None
        self.pid = fork_server().ask(
            arguments=list(map(str, command[1:])), folder=str(folder), environment=environment,
            stdout=self.stdout.name, stderr=(self._stderr if stderr else self.stdout).name,
        )  # fmt: skip

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = fork_server().ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[bytes, bytes]:
        self.wait(timeout)
        return self.stdout.read(), self._stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_python(
    *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None, stderr: bool = True
) -> subprocess.Popen | Forked:
    """`python ARGUMENTS` in `folder`, a script or a module; errors go to `stdout` too where `stderr` is not wanted."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    forked = ("accelerate", "grading", "pytest", "torch")  # the launchers too; what they start imports what it needs
    if FORKS and (command[1].endswith(".py") or command[1] == "-m" and command[2].split(".")[0] in forked):
        return Forked(command, folder, environment, stderr)
    other = subprocess.PIPE if stderr else subprocess.STDOUT
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=other)


def run_python(
    *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` to its end, whatever that is."""
    process = start_python(*arguments, folder=folder, environment=environment)
    try:
        said, complaints = (text.decode() for text in process.communicate(timeout=timeout))
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, said, complaints)


def run_notebook(notebook: Path, **environment: str) -> list[dict[str, Any]]:
    """Its cells from the first to the last, in its folder; what each showed, by type.

    By the shell that Jupyter's kernel runs them with, but forked: a kernel would import PyTorch for seconds.
    """
    run = run_python(WRAPPERS / "notebook.py", notebook, folder=notebook.parent, environment=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def run_two(*arguments: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Two processes of `python ARGUMENTS` that know of each other what torchrun tells them; all that they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    told = {**(environment or {}), **told}
    processes = [
        start_python(*arguments, folder=folder, stderr=False, environment={**told, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    return end_well(processes)


def end_well(processes: Sequence[subprocess.Popen | Forked]) -> str:
    """All that they say to their ends, which must be good ones."""
    try:
        said = [process.communicate(timeout=600)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    ends = [process.returncode for process in processes]
    assert not any(ends), (ends, said)
    return "".join(said)


def launch_two(launcher: Sequence[str], program: Program, output_dir: Path, *flags: str) -> str:
    """The program in two processes, with the arguments and the environment that a launcher gives those it starts.

    Its own would import PyTorch for seconds, so they wait, as `wrappers/launched.py`, while forked ones train.
    """
    with tempfile.TemporaryDirectory(prefix="launched-") as folder:
        arguments = (WRAPPERS / "launched.py", folder, *program.arguments(output_dir, flags))
        started = start_python(
            *launcher, *arguments, folder=program.folder, environment=program.environment, stderr=False
        )
        try:
            asked_for = [Path(folder) / f"{rank}.json" for rank in range(2)]
            for file in asked_for:
                wait_for(file, started)
            processes = []
            for file in asked_for:
                asked = json.loads(file.read_text())
                processes.append(
                    start_python(
                        *asked["arguments"], folder=asked["folder"], environment=asked["environment"], stderr=False
                    )
                )
            said = end_well(processes)
            (Path(folder) / "done").touch()
            return said + end_well([started])
        finally:
            started.kill()


class Program:
    """A training program with the flags that all its test runs share.

    Args:
        base: returns the folder of the base that is trained on, made when the first run needs it.
    """

    def __init__(self, folder: str, script: str, flags: list[str], base: Callable[[], str] = lambda: BASE) -> None:
        self.folder, self.base = ROOT / folder, base
        self.under: list[str] = []  # what runs the script, if not Python alone
        self.script, self.flags = script, flags
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def arguments(self, output_dir: Path, flags: tuple[str, ...]) -> list[str]:
        base = ["--pretrained_model_name_or_path", self.base()]
        return [*self.under, self.script, *base, *self.flags, "--output_dir", str(output_dir), *map(str, flags)]

    def run(self, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        """To the end, whatever that is."""
        return run_python(*self.arguments(output_dir, flags), folder=self.folder, environment=self.environment)

    def train(self, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        """To the end, which must be a good one."""
        run = self.run(output_dir, *flags)
        assert run.returncode == 0, run.stdout + run.stderr
        return run

    def run_here(self, output_dir: Path, *flags: str) -> tuple[int, str]:
        """As `run`, in this process, for what needs no other: its exit status, and all it said."""
        main = importlib.import_module(Path(self.script).stem).main
        return call(main, *self.arguments(output_dir, flags)[1:])

    def train_here(self, output_dir: Path, *flags: str) -> str:
        """As `train`, in this process, for what needs no other; all it said."""
        status, said = self.run_here(output_dir, *flags)
        assert status == 0, said
        return said

    def start(self, output_dir: Path, *flags: str) -> subprocess.Popen | Forked:
        """In the background, with all that it says in `stdout`."""
        arguments = self.arguments(output_dir, flags)
        return start_python(*arguments, folder=self.folder, environment=self.environment, stderr=False)


def wait_for(path: Path, process: subprocess.Popen | Forked, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    furthest = {name: float((one[name] - other[name]).abs().max()) for name in one}
    different = {name: by for name, by in furthest.items() if not one[name].equal(other[name])}
    assert not different, different


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
