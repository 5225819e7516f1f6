"""A Python that has imported what takes long, and forks for each program that is to run: no program waits for PyTorch.

`start.py` starts this file by its path, as root and with a clean environment, with the number of a listening socket and
the modules to import. It never runs anything itself: it imports libraries, waits, and forks. Whatever a program is told
is read after the fork, in the child, so that every child finds the same memory, in which there is nothing of another
program. A program of a hand-in gets a child in namespaces of its own, that closes all doors (`confine.py`) and gives up
its rights before the first line of the program runs.

Two processes belong to each program: the keeper, which waits for the program's end or for the one who asked to hang up,
and the program itself. Only the standard library and `confine.py` are used.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_REQUEST = 1_000_000
HANDED_OVER = 1  # file descriptors that come with a request: where the program prints


def load_confine() -> Any:
    """`confine.py` beside this file: as a program run by its path, this one knows of no package."""
    name = "grading_sandbox_confine"
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name("confine.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


confine = load_confine()


@dataclass(frozen=True)
class Request:
    """A program: the arguments that `python` would get, where it starts, its environment, and, where nobody trusts it,
    its `Confinement` as a dictionary."""

    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    confinement: dict[str, Any] | None


def serve(server: socket.socket) -> list[str]:
    """Forks for each connection, for ever; returns in the children only, with the arguments of the program to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets each keeper when it ends
    while True:
        connection, _ = server.accept()
        if os.fork():
            connection.close()
            continue
        os.close(server.detach())
        confine.die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return keep(connection)


def keep(connection: socket.socket) -> list[str]:
    """Reads a request and forks the program; in the program it returns, in the keeper it never does."""
    request, output = read_request(connection)
    confined = request.confinement and confine.Confinement(**request.confinement)
    if confined and confined.namespaces:
        confine.enter_namespaces()
    program = os.fork()
    if program:
        os.close(output)
        wait_for(program, connection, in_session=not confined)
    os.close(connection.detach())
    os.setsid()
    confine.die_with_parent()
    attach(output, request)
    if confined:
        in_sandbox(confined)
    set_threads()
    return request.arguments


def read_request(connection: socket.socket) -> tuple[Request, int]:
    """What is to run, and where it prints. Another user than root cannot ask; then this process ends."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
        os._exit(1)
    data, descriptors, _, _ = socket.recv_fds(connection, 4, HANDED_OVER)
    length, data = int.from_bytes(data, "big"), b""
    while len(data) < min(length, MAX_REQUEST):
        piece = connection.recv(length - len(data))
        if not piece:
            os._exit(1)
        data += piece
    return Request(**json.loads(data)), descriptors[0]


def wait_for(program: int, connection: socket.socket, in_session: bool) -> None:
    """Waits until a program ends and tells how, as a shell does; ends it when the one who asked hangs up.

    Args:
        in_session: what the program has started ends with it, as it is in the program's session. In a sandbox it ends
            with the sandbox's processes.
    """
    handle = os.pidfd_open(program)
    ready, _, _ = select.select([handle, connection], [], [])
    if handle not in ready:
        try:
            os.killpg(program, signal.SIGKILL) if in_session else os.kill(program, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(program, signal.SIGKILL)  # it has no session yet
    _, status = os.waitpid(program, 0)
    code = os.waitstatus_to_exitcode(status)
    try:
        connection.sendall(bytes([128 - code if code < 0 else code]))
    except OSError:  # nobody is there any more
        os._exit(1)
    os._exit(0)


def attach(output: int, request: Request) -> None:
    """Gives this process the program's files, folder and environment, and none of another's."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)


def set_threads() -> None:
    """As many for PyTorch as the environment says, which it reads at its import only.

    Behind the last fork: PyTorch makes its threads anew in a child at their first use, and where that comes in two
    threads at once, it may end in "Invalid thread pool!" (one of 21 trainings, 2026-12-02; not seen again).
    """
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def in_sandbox(confined: Any) -> None:
    """Closes all doors, and goes on as a child without rights; the process with rights tells how that one ended."""
    if confined.namespaces:
        flags = confine.MS_NOSUID | confine.MS_NODEV | confine.MS_NOEXEC
        confine.mount("proc", "/proc", "proc", flags)
    confine.close_doors(confined)
    program = os.fork()
    if not program:
        confine.give_up_rights(confined.user)
        return
    _, status = os.waitpid(program, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def run(arguments: list[str]) -> None:
    """Does what `python ARGUMENTS` does with a file, with `-m MODULE` or with `-c CODE`."""
    first, *rest = arguments
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if first in ("-m", "-c"):
        what, *rest = rest
        sys.path[:0] = [os.getcwd() if first == "-m" else "", *paths]
        sys.argv = [first, *rest]
        if first == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
        return
    sys.path[:0] = [str(Path(first).resolve().parent), *paths]
    sys.argv = list(arguments)
    runpy.run_path(first, run_name="__main__")


def show_error(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """As Python does, without the lines of this file, in which no fault is."""
    while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>", runpy.__file__):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def main() -> None:
    sys.excepthook = show_error
    server = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        with suppress(ImportError):  # another release may lack it; a program that needs it says so itself
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy what all share
    run(serve(server))


if __name__ == "__main__":
    main()
