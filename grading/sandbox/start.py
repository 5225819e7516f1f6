"""Starts Python programs: warm ones where there is a warm Python (`warm.py`), cold ones elsewhere.

    with warm_python(["torch"]):
        process = start_python(["-m", "grading.autograder", "--help"], cwd, environment)

Both kinds are waited for alike. A warm Python is had by root on Linux only: without rights to give up, student's code
would be the same user as the process that all programs are forked from.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Iterator, Mapping, Sequence

from .confine import Confinement
from .cores import thread_environment
from .limits import SandboxError

WARM = Path(__file__).resolve().with_name("warm.py")
# Where the warm Python listens; set for this process and those that it starts, never for a sandbox.
SOCKET = "GRADING_WARM_PYTHON"
# What every program of the grader imports; nothing of this repository, so that no solution is in that memory.
LIBRARIES = (
    "torch", "torch._dynamo", "torch.utils.data", "torch.utils.tensorboard", "accelerate", "diffusers",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.controlnets.controlnet", "diffusers.optimization", "diffusers.loaders.peft",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.controlnet.pipeline_controlnet", "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_unipc_multistep", "peft", "safetensors.numpy", "safetensors.torch",
    "scipy.ndimage", "skimage.color", "skimage.feature", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "pypdf", "psutil",
)  # fmt: skip


class WarmProcess:
    """A program that the warm Python has forked, with what `watch` asks of a `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, stdout: IO[bytes] | None) -> None:
        self.connection = connection
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self.ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a program of the warm Python", timeout or 0)
        return code

    def ended_within(self, timeout: float | None) -> int | None:
        """Raises SandboxError if nobody knows how it ended."""
        if self.returncode is None and select.select([self.connection], [], [], timeout)[0]:
            told = b""
            with self.connection, suppress(ConnectionResetError):
                told = self.connection.recv(1)
            self.returncode = told[0] if told else 128 + signal.SIGKILL
            if not told:
                raise SandboxError("The warm Python has lost a program: its process was ended from outside.")
        return self.returncode

    def kill(self) -> None:
        """Ends it and what it has started."""
        if self.returncode is None:
            self.connection.shutdown(socket.SHUT_WR)


def warm_socket() -> str | None:
    """Where the warm Python listens, if there is one."""
    return os.environ.get(SOCKET) if os.geteuid() == 0 else None


def start_python(
    arguments: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    stdout: int,
    confinement: Confinement | None = None,
) -> WarmProcess | subprocess.Popen:
    """Starts `python ARGUMENTS` in a session of its own, without an input.

    Args:
        stdout: the descriptor that gets all it prints.
        confinement: only with a warm Python, for what nobody trusts.

    Raises:
        SandboxError: if there is a warm Python and it cannot be reached.
    """
    address = warm_socket()
    if address is None:
        assert confinement is None
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=stdout, start_new_session=True,
        )  # fmt: skip
    request = json.dumps(
        {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(environment),
            "confinement": confinement and asdict(confinement),
        }
    ).encode()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [stdout])
        connection.sendall(request)
    except OSError as error:
        raise SandboxError(f"The warm Python cannot be reached ({error}): start the grader again.") from error
    return WarmProcess(connection, None)


def kill_session(process: WarmProcess | subprocess.Popen) -> None:
    """Kills what `end_session` ends, and does not wait for it."""
    if isinstance(process, WarmProcess):
        process.kill()
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def end_session(process: WarmProcess | subprocess.Popen) -> None:
    """Ends a program of `start_python` that may still run, and what it has started."""
    kill_session(process)
    process.wait()


@contextmanager
def warm_python(environment: Mapping[str, str], modules: Sequence[str] = LIBRARIES) -> Iterator[bool]:
    """A warm Python for all programs that are started within; whether there is one.

    The one of the program that started this one serves both.

    Args:
        environment: its own; only what every program may know.
    """
    if os.geteuid() != 0 or not hasattr(os, "pidfd_open"):
        yield False
        return
    if os.path.exists(warm_socket() or ""):
        yield True
        return
    with tempfile.TemporaryDirectory(prefix="grading-warm-") as folder, socket.socket(socket.AF_UNIX) as server:
        address = str(Path(folder).resolve() / "socket")  # in a folder that only root can enter
        server.bind(address)
        server.listen(64)
        command = ["setpriv", "--pdeathsig=KILL", sys.executable, "-I", "-B", "-u", str(WARM), str(server.fileno())]
        process = subprocess.Popen(
            [*command, *modules], cwd="/", env={**environment, **thread_environment()}, stdin=subprocess.DEVNULL,
            start_new_session=True, pass_fds=[server.fileno()],
        )  # fmt: skip
        server.close()  # the last one listens there: when it ends, nobody waits for it in vain
        before = os.environ.get(SOCKET)
        os.environ[SOCKET] = address
        try:
            yield True
        finally:
            os.environ.pop(SOCKET)
            os.environ.update({} if before is None else {SOCKET: before})
            process.kill()
            process.wait()
