"""Watches a process and what it starts, and ends all of it at the first limit.

On a busy machine a program takes longer for no fault of its own. What counts against it is its own time: that by the
clock, less what it spent waiting for a processor that others had.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Callable, Iterable, Sequence

import psutil

from .cores import usable_cores

MIB = 2**20
# Looking takes time of its own: a long run is looked at less often, and its files less often than its processes.
POLL_SECONDS = (0.02, 0.25)
DISK_SECONDS = 0.25
BLOCK = 4096
# How long to wait for what was killed to be gone: a process in the middle of a disk access takes a while.
LAST_SECONDS = 10.0


class SandboxError(Exception):
    """The sandbox itself cannot be had or does not do what it must; the message says what to do."""


@dataclass(frozen=True)
class Limits:
    """Of all processes together; memory is what is resident, as PyTorch reserves far more than it uses.

    `seconds` are of its own time, see above, and `cpu_seconds` of computing on all cores.
    """

    seconds: float = 60.0
    cpu_seconds: float = 120.0
    memory_mib: int = 4096
    disk_mib: int = 512
    threads: int = 128
    open_files: int = 256
    output_kib: int = 8192
    tail_characters: int = 4000

    def resources(self) -> dict[str, int]:
        """The kernel's own limits, for each process: a net below the watch, which looks only every now and then."""
        return {
            "RLIMIT_CPU": int(self.cpu_seconds) + 2,
            "RLIMIT_FSIZE": self.disk_mib * MIB,
            "RLIMIT_NPROC": self.threads + 8,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status as a shell tells it (128 + n after signal n), the limit that ended it or
    None, the end of what it printed, and what it took; `seconds` are by the clock."""

    exit_code: int
    limit: str | None
    tail: str
    seconds: float
    peak_memory_mib: float

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0 and self.limit is None


class Output(threading.Thread):
    """Reads what a process prints, so that it never waits, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen, tail_characters: int) -> None:
        super().__init__(daemon=True)
        self.stream = process.stdout
        self.size = 0
        self.chunks: deque[bytes] = deque()
        self.kept = 0
        self.wanted = 4 * tail_characters
        self.start()

    def run(self) -> None:
        while chunk := os.read(self.stream.fileno(), 65536):
            self.size += len(chunk)
            self.chunks.append(chunk)
            self.kept += len(chunk)
            while self.kept - len(self.chunks[0]) >= self.wanted:
                self.kept -= len(self.chunks.popleft())

    def tail(self, characters: int) -> str:
        """The last lines, as they would look in a file: no colours, no progress bars drawn over each other."""
        text = b"".join(self.chunks).decode("utf-8", "replace").replace("\r\n", "\n")
        lines = [line.rpartition("\r")[2] for line in text.split("\n")]
        return "".join(c for c in "\n".join(lines) if c.isprintable() or c in "\n\t")[-characters:]


@dataclass
class Usage:
    """Of some processes at one moment; `waits` are the seconds that each thread has waited for a processor so far."""

    memory_mib: float = 0.0
    cpu_seconds: float = 0.0
    threads: int = 0
    unlinked_blocks: int = 0
    waits: dict[int, float] = field(default_factory=dict)

    def add(self, process: psutil.Process) -> None:
        try:
            with process.oneshot():
                times = process.cpu_times()
                self.cpu_seconds += times.user + times.system + times.children_user + times.children_system
                self.memory_mib += process.memory_info().rss / MIB
                self.threads += process.num_threads()
            self.waits.update(waits(process.pid))
            self.unlinked_blocks += unlinked_blocks(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, PermissionError, ProcessLookupError):
            return  # it has just ended


def unlinked_blocks(pid: int) -> int:
    """Disk blocks of files that are open but have no name any more; and of memory that poses as a file."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            status = os.stat(entry.path)
        except OSError:  # closed in the meantime
            continue
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
            found[status.st_dev, status.st_ino] = status.st_blocks
    return sum(found.values())


def waits(pid: int) -> dict[int, float]:
    """For how many seconds each thread of a process could have run, but had no processor."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/task"):
        try:
            nanoseconds = Path(entry.path, "schedstat").read_text().split()[1]
        except OSError:  # it has just ended, or this kernel does not keep it: then all time by the clock counts
            continue
        found[int(entry.name)] = int(nanoseconds) / 1e9
    return found


def own_time(before: Usage, now: Usage, seconds: float) -> float:
    """How much of the seconds between two moments was the program's own, and not that of others on a busy machine.

    Threads of its own that wait for each other get nothing: what all cores have computed for it counts in any case.
    """
    waited = max((wait - before.waits.get(thread, 0.0) for thread, wait in now.waits.items()), default=0.0)
    computed = (now.cpu_seconds - before.cpu_seconds) / usable_cores()
    return min(max(seconds - max(waited, 0.0), computed, 0.0), seconds)


def disk_usage(paths: Iterable[Path], enough: int) -> int:
    """Bytes in use, a block at least for each file; counts no further than `enough`."""
    total, waiting = 0, list(paths)
    while waiting and total <= enough:
        path = waiting.pop()
        try:
            status = os.lstat(path)
            total += max(512 * status.st_blocks, BLOCK)
            inside = entries_of(path, (enough - total) // BLOCK + 1) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # nested so deep that nobody can look
                return enough + 1
            continue  # removed in the meantime, or closed by its owner
        total += BLOCK * len(inside)  # at once, as a folder can have a million
        waiting += inside
    return total


def entries_of(folder: Path, most: int) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in islice(entries, max(most, 0))]


@dataclass
class Account:
    """What a program has used up to the last look: its own time is less than the clock's where others were served."""

    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    own_seconds: float = 0.0
    peak_memory_mib: float = 0.0

    def look(self, processes: Iterable[psutil.Process], seconds: float) -> None:
        """Adds what was used until now, which is so many seconds after the start."""
        before, self.usage = self.usage, Usage()
        for process in processes:
            self.usage.add(process)
        self.own_seconds += own_time(before, self.usage, seconds - self.seconds)
        self.seconds = seconds
        self.peak_memory_mib = max(self.peak_memory_mib, self.usage.memory_mib)


def exceeded(account: Account, printed: int, limits: Limits) -> str | None:
    """The first limit that is passed, in words that end "it was stopped: ...".

    Time comes last: on a machine that stood still for a while one look finds several, and the others tell more.
    """
    usage = account.usage
    checks = {
        f"it started more than {limits.threads} processes or threads": usage.threads > limits.threads,
        f"it took more than {limits.memory_mib} MiB of memory": usage.memory_mib > limits.memory_mib,
        f"it printed more than {limits.output_kib} KiB": printed > 1024 * limits.output_kib,
        f"it took longer than {limits.seconds:.0f} s": account.own_seconds > limits.seconds,
        f"it took more than {limits.cpu_seconds:.0f} s of computing time": usage.cpu_seconds > limits.cpu_seconds,
    }
    return next((sentence for sentence, true in checks.items() if true), None)


def full_disk(account: Account, folders: Iterable[Path], limits: Limits) -> str | None:
    """The sentence of `exceeded` about what was written."""
    most = limits.disk_mib * MIB
    if disk_usage(folders, most) + 512 * account.usage.unlinked_blocks > most:
        return f"it wrote more than {limits.disk_mib} MiB to the disk"
    return None


def watch(
    process: subprocess.Popen,
    limits: Limits,
    processes: Callable[[], Sequence[psutil.Process]],
    folders: Callable[[], Sequence[Path]],
    kill: Callable[[], None],
) -> Outcome:
    """Waits for the end of a process, or ends it; afterwards nothing that it started runs any more.

    Args:
        process: with its output in a pipe, the leader of a session of its own.
        processes: all that count against the limits.
        folders: where it can write.
        kill: ends all of `processes()`.

    Raises:
        SandboxError: if something goes on running.
    """
    output = Output(process, limits.tail_characters)
    account = Account()
    start, next_disk, limit = time.monotonic(), 0.0, None
    while limit is None and process.poll() is None:
        account.look(processes(), time.monotonic() - start)
        limit = exceeded(account, output.size, limits)
        if limit or account.seconds >= next_disk:
            next_disk = account.seconds + DISK_SECONDS
            limit = full_disk(account, folders(), limits) or limit
        pause(process, account.seconds)
    seconds = time.monotonic() - start
    end(process, processes, kill)
    output.join(LAST_SECONDS)
    return Outcome(
        exit_code=process.returncode if process.returncode >= 0 else 128 - process.returncode,
        limit=limit,
        tail=output.tail(limits.tail_characters),
        seconds=seconds,
        peak_memory_mib=account.peak_memory_mib,
    )


def pause(process: subprocess.Popen, seconds: float) -> None:
    """Waits until it is time to look again at a process that has run for so long, or until its end."""
    shortest, longest = POLL_SECONDS
    try:
        process.wait(min(max(seconds / 20, shortest), longest))
    except subprocess.TimeoutExpired:
        return


def end(process: subprocess.Popen, processes: Callable[[], Sequence[psutil.Process]], kill: Callable[[], None]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    until = time.monotonic() + LAST_SECONDS
    while True:
        kill()
        if not processes():
            return
        if time.monotonic() > until:
            raise SandboxError("Something that the code started cannot be ended.")
        time.sleep(POLL_SECONDS[0])
