"""Runs code that nobody trusts: as another user, in a private folder, without a network, within limits.

    with Sandbox(hidden=[results]) as sandbox:
        outcome = sandbox.run([sys.executable, "train.py"], Limits(seconds=60))
        weights = sandbox.collect("output/weights.safetensors", max_bytes=100_000_000)

As root on Linux everything that this promises holds. Elsewhere as much as can be had, and `isolation.py` says what
is missing: without root the code runs as the same user, and where a container forbids namespaces, only permissions hide
files, so those must not be readable by others (`chmod o=`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Sequence

import psutil

from .confine import Confinement
from .cores import thread_environment
from .limits import Limits, Outcome, SandboxError, watch
from .start import start_python, warm_socket

CONFINE = Path(__file__).resolve().with_name("confine.py")
ROOT = Path(__file__).resolve().parents[2]
# The range that systemd too takes passing users from; containers with a range of their own have it as well.
USERS = range(61184, 65520)
SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")
NAMESPACES = ["--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
REMOVAL_SECONDS = 30.0
MARK = "GRADING_SANDBOX"


@lru_cache(maxsize=None)
def namespace_command() -> tuple[str, ...]:
    """What starts a command in namespaces of its own; empty where that is not allowed."""
    as_other = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ("unshare", *as_other, *NAMESPACES, "--mount-proc")
    if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
        return command
    return ()


def take_user() -> tuple[int, socket.socket]:
    """The id of a user who is nobody and runs nothing, and what keeps it from every other sandbox until it is closed.

    Two sandboxes of one user would end each other's programs, and neither hand-in's fault is that.

    Raises:
        SandboxError: if all are taken.
    """
    busy = {process.info["uids"].real for process in psutil.process_iter(["uids"]) if process.info["uids"]}
    start = random.SystemRandom().randrange(len(USERS))
    for user in (*USERS[start:], *USERS[:start]):
        taken = socket.socket(socket.AF_UNIX)
        if user not in busy:
            with suppress(OSError):
                taken.bind(f"\0grading-user-{user}")  # a name that the kernel gives once, and forgets with its owner
                return user, taken
        taken.close()
    raise SandboxError("Student's code finds no user that is free: end what other gradings have left running.")


def clean_environment(home: Path) -> dict[str, str]:
    """What the code finds set: nothing of the grader's, and no more threads than cores."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "USER": "student",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        **thread_environment(),
        "TOKENIZERS_PARALLELISM": "false",
    }


def links_among(folders: Sequence[str]) -> dict[str, str]:
    """Those of the interpreter's folders that are links, as a `.venv` may be, and where they lead: it is started by the
    link's name, and what is hidden around the link hides the link."""
    places = [Path(folder).parent.resolve() / Path(folder).name for folder in folders]
    return {str(place): str(place.resolve()) for place in places if place.is_symlink()}


class Sandbox:
    """A private folder and a user of its own; everything goes when it is closed.

    `folder` is for what the code may read: fill it before `run`. Only in `work` can it write.

    Args:
        hidden: folders and files that must be out of its sight, besides this repository and the home folder.
        shared: folders that it may read though they are in what is hidden.
        other_user, namespaces: leave out a part of the isolation; None takes what can be had.
    """

    def __init__(
        self,
        hidden: Sequence[Path] = (),
        shared: Sequence[Path] = (),
        other_user: bool | None = None,
        namespaces: bool | None = None,
    ) -> None:
        whole_disk = Path("/")
        self.hidden = [Path(path).resolve() for path in (ROOT, Path.home(), *hidden) if Path(path) != whole_disk]
        self.shared = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix, *shared)]
        self.links = links_among([sys.prefix, sys.base_prefix])
        as_other = os.geteuid() == 0 if other_user is None else other_user
        self.user, self.taken = take_user() if as_other else (None, None)
        self.namespaces = bool(namespace_command()) if namespaces is None else namespaces
        self.folder = Path(tempfile.mkdtemp(prefix="sandbox-")).resolve()
        self.work = self.folder / "work"
        self.work.mkdir(mode=0o700)
        self.folder.chmod(0o750)
        if self.user is not None:
            self.give_folders()
        self.mark = f"{os.getpid()}-{self.folder.name}"

    def give_folders(self) -> None:
        try:
            os.chown(self.folder, 0, self.user)
            os.chown(self.work, self.user, self.user)
        except OSError as error:
            raise SandboxError(
                f"Root cannot give files to user {self.user} here ({error.strerror}): run the grader in a "
                "container whose users are not restricted, or not as root."
            ) from error

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends whatever still runs, and removes every file that it left."""
        try:
            self.clear()
        finally:
            if self.taken:
                self.taken.close()

    def clear(self) -> None:
        self.kill()
        leftovers = list(map(str, (self.folder, *self.litter())))
        # Not shutil.rmtree, which gives up on folders a thousand deep.
        subprocess.run(["chmod", "-R", "u+rwX", str(self.folder)], check=True)
        remover = subprocess.Popen(["rm", "-rf", "--", *leftovers])
        try:
            remover.wait(REMOVAL_SECONDS)
        except subprocess.TimeoutExpired:  # a great many files: it goes on by itself
            return

    def run(
        self, command: Sequence[str], limits: Limits, environment: dict[str, str] | None = None, cwd: Path | None = None
    ) -> Outcome:
        """Runs a command to its end or to its first limit, after which nothing of it is left running.

        Args:
            environment: set besides `clean_environment`.
            cwd: where it starts; `work` by default.

        Raises:
            SandboxError: if something of it goes on running.
        """
        confinement = self.confinement(command, limits)
        start = list(namespace_command()) if self.namespaces else []
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=KILL",
                *start,
                sys.executable,
                "-I",
                str(CONFINE),
                json.dumps(asdict(confinement)),
            ],
            cwd=cwd or self.work,
            env=self.environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return watch(process, limits, self.processes, self.folders, self.kill)

    def run_python(
        self,
        arguments: Sequence[str],
        limits: Limits,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Outcome:
        """`run` of `python ARGUMENTS`, without its start-up time where there is a warm Python.

        The arguments are a file's path, `-m` and a module, or `-c` and a text, and what these get.
        """
        if self.user is None or not warm_socket():
            return self.run([sys.executable, *arguments], limits, environment, cwd)
        output, end = os.pipe()
        try:
            process = start_python(
                arguments, cwd or self.work, self.environment(environment), end, self.confinement([], limits)
            )
        finally:
            os.close(end)
        process.stdout = os.fdopen(output, "rb")
        return watch(process, limits, self.processes, self.folders, self.kill)

    def environment(self, more: dict[str, str] | None) -> dict[str, str]:
        return {**clean_environment(self.work), **(more or {}), MARK: self.mark}

    def confinement(self, command: Sequence[str], limits: Limits) -> Confinement:
        shared = {**dict.fromkeys(map(str, self.shared), False), str(self.folder): True}
        resources = limits.resources()
        if self.user is None:  # the limit counts all that this user runs, also outside
            resources["RLIMIT_NPROC"] += sum(
                process.info["num_threads"] or 0
                for process in psutil.process_iter(["uids", "num_threads"])
                if process.info["uids"] and process.info["uids"].real == os.getuid()
            )
        covered = sorted({*map(str, self.hidden), *SCRATCH}, key=lambda path: path.count("/"))
        return Confinement(
            self.namespaces, covered, shared, self.links, list(SCRATCH), self.user, resources, list(command)
        )

    def processes(self) -> list[psutil.Process]:
        """What runs in here: all of the sandbox's user; else all that carry its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if self.user is not None:
                    mine = process.uids().real == self.user
                else:
                    mine = process.environ().get(MARK) == self.mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def folders(self) -> list[Path]:
        """Where it can have written."""
        return [self.work, *self.litter()]

    def litter(self) -> list[Path]:
        """What the sandbox's user left in the folders for everyone's temporary files."""
        if self.user is None:
            return []
        paths = [Path(entry.path) for folder in SCRATCH if os.path.isdir(folder) for entry in os.scandir(folder)]
        return [path for path in paths if owner(path) == self.user]

    def kill(self) -> None:
        """Kills all that runs in here, also what became a daemon."""
        if self.user is not None:  # one call for all, so that a fork cannot outrun it
            # By setpriv: with subprocess's own `user` this process is copied first, which may be large.
            become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"]
            subprocess.run([*become, "/bin/sh", "-c", "kill -KILL -1"], cwd="/", capture_output=True)
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def collect(self, name: str, max_bytes: int) -> bytes | None:
        """A file that the code wrote in `work`; None if it is not there.

        Raises:
            SandboxError: if it is no regular file of the sandbox's own, lies behind a link, or is larger than allowed.
        """
        kinds = [*[os.O_DIRECTORY] * (len(Path(name).parts) - 1), os.O_NONBLOCK]
        handle = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part, kind in zip(Path(name).parts, kinds):
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=handle)
                os.close(handle)
                handle = inner
            status = os.fstat(handle)
            own = status.st_uid == (os.getuid() if self.user is None else self.user)
            if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and own):
                raise SandboxError(f"{name} is no file of its own.")
            if status.st_size > max_bytes:
                raise SandboxError(f"{name} is larger than {max_bytes:,} bytes.")
            with os.fdopen(os.dup(handle), "rb") as file:
                return file.read(max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SandboxError(f"{name} cannot be read ({error.strerror}): it may be a link.") from error
        finally:
            os.close(handle)


def owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None
