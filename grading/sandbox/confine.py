"""The inner half of the sandbox: closes the doors behind itself, then runs one command and waits for its end.

`sandbox.py` starts this file by its path, as root where it can and in fresh namespaces where they are allowed,
with one argument, a `Confinement` as JSON. `warm.py` uses its functions in a process that it has forked, which makes
its namespaces by itself. It imports only the standard library. Its exit status is the command's, as a shell tells it:
128 + n after signal n.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 32, 4096, 16384
KEPT_FLAGS = 1 | 2 | 4 | 8 | 1024 | 2048  # those a remount must repeat; statvfs(3) gives them the same numbers
MS_NOEXEC, MS_PRIVATE = 8, 1 << 18
# sched.h: what `unshare --mount --net --ipc --pid` asks for
NAMESPACES = 0x00020000 | 0x40000000 | 0x08000000 | 0x20000000
# prctl(2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, LINUX_CAPABILITY_VERSION_3 = 4, 0x20080522
# libseccomp's seccomp.h
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_CMP_NE, EPERM = 0x7FFF0000, 0x00050000, 1, 1
# seccomp does not see what goes through io_uring.
FORBIDDEN_CALLS = ("io_uring_setup", "ptrace", "process_vm_readv", "process_vm_writev", "keyctl", "add_key")


@dataclass(frozen=True)
class Confinement:
    """What is closed, and what then runs.

    covered: folders and files that are out of sight, in namespaces of our own; parents before what is in them.
    shared: folders below them that stay in sight: True where they may be written.
    links: names below them that lead somewhere else, as they did before.
    scratch: covered folders that stay folders for everyone's temporary files.
    user: the id to run as; None stays the same user, without rights.
    resources: hard limits by the names of the module `resource`.
    """

    namespaces: bool
    covered: list[str]
    shared: dict[str, bool]
    links: dict[str, str]
    scratch: list[str]
    user: int | None
    resources: dict[str, int]
    command: list[str]


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot mount on {target}: {os.strerror(error)}")


def cover(path: Path, confinement: Confinement) -> None:
    """Mounts nothing over a path, and in it again what stays in sight."""
    if not path.exists():  # also where it lies in what is covered already
        return
    if not path.is_dir():
        mount("/dev/null", str(path), "", MS_BIND)
        return
    inside = {name: writable for name, writable in confinement.shared.items() if path in Path(name).parents}
    handles = {name: os.open(name, os.O_PATH) for name in inside if os.path.isdir(name)}
    is_scratch = str(path) in confinement.scratch
    mode, size = ("1777", "64m") if is_scratch else ("0755", "1m")
    mount("tmpfs", str(path), "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode},size={size}")
    for name, handle in handles.items():
        os.makedirs(name, exist_ok=True)
        mount(f"/proc/self/fd/{handle}", name, "", MS_BIND | MS_REC)
        os.close(handle)
        if not inside[name]:
            kept = os.statvfs(name).f_flag & KEPT_FLAGS
            mount("none", name, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
    for name, target in confinement.links.items():
        if path in Path(name).parents and not os.path.lexists(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
            os.symlink(target, name)
    if not is_scratch:
        mount("none", str(path), "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def forbid_network() -> bool:
    """Forbids sockets other than local ones for this process and its children; False where libseccomp is missing."""

    class Comparison(ctypes.Structure):
        _fields_ = [
            ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64),
        ]  # fmt: skip

    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return False
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(SCMP_ACT_ALLOW)))
    refusal = ctypes.c_uint32(SCMP_ACT_ERRNO | EPERM)
    rules = {name: [] for name in FORBIDDEN_CALLS}
    rules["socket"] = [Comparison(0, SCMP_CMP_NE, socket.AF_UNIX, 0)]
    for name, comparisons in rules.items():
        number = library.seccomp_syscall_resolve_name(name.encode())
        array = (Comparison * len(comparisons))(*comparisons)
        failed = library.seccomp_rule_add_array(context, refusal, number, len(comparisons), array)
        if failed and name == "socket":  # a call that an old libseccomp does not know is not there either
            return False
    return library.seccomp_load(context) == 0


def drop_rights(user: int | None) -> list[str]:
    """The start of a command line that runs the rest of it as `user`, without any capability."""
    command = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--pdeathsig=KILL"]
    if os.geteuid() == 0:
        command += ["--bounding-set=-all"]
    if user is not None:
        command += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [*command, "--"]


def prctl(option: int, value: int = 0) -> bool:
    return ctypes.CDLL(None, use_errno=True).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) == 0


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def give_up_rights(user: int) -> None:
    """What `drop_rights` has setpriv do, in this process, which must be root's.

    Raises:
        OSError: if a right is left; then nothing may run.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)  # fails for numbers that this kernel does not have
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.capset((ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    prctl(PR_SET_DUMPABLE, 1)  # as after an exec: otherwise its own files in /proc are root's
    die_with_parent()  # last, as the kernel forgets it when the user changes
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    rights = [name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)]
    if rights or status["NoNewPrivs"].strip() != "1" or set(status["Uid"].split()) != {str(user)}:
        raise OSError(f"cannot give up rights: {', '.join(rights) or 'the user'}")


def enter_namespaces() -> None:
    """Namespaces of its own for this process; those of process ids begin with its next child."""
    if ctypes.CDLL(None, use_errno=True).unshare(NAMESPACES):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot make namespaces: {os.strerror(error)}")
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def close_doors(confinement: Confinement) -> None:
    """All that is closed for this process and what it starts, but the rights of its user."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this goes and not the grader
    if confinement.namespaces:
        folder = os.getcwd()
        for path in confinement.covered:
            cover(Path(path), confinement)
        os.chdir(folder)  # again, as it may have been covered and is now mounted anew
    for name, limit in confinement.resources.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    forbid_network()


def main() -> None:
    confinement = Confinement(**json.loads(sys.argv[1]))
    command = [*drop_rights(confinement.user), *confinement.command]
    close_doors(confinement)
    status = subprocess.Popen(command).wait()
    sys.exit(128 - status if status < 0 else status)


if __name__ == "__main__":
    main()
