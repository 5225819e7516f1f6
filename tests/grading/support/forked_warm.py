"""The grader's warm Python, where the tests have a process to fork that has imported PyTorch: `forked_warm.py ADDRESS`.

It finds what the real one finds, nothing of this repository, and ends with the process that it was forked from.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

SANDBOX = Path(__file__).resolve().parents[3] / "grading" / "sandbox"


@contextmanager
def forked_warm_python() -> Iterator[str]:
    """The address of one. Importing PyTorch for it once more would take as long as most tests that use it."""
    from grading.autograder.run import PLAIN_ENVIRONMENT
    from grading.sandbox.cores import thread_environment
    from grading.sandbox.start import LIBRARIES
    from processes import Forked, wait_for

    with tempfile.TemporaryDirectory(prefix="grading-warm-") as folder:
        address = Path(folder).resolve() / "socket"  # in a folder that only root can enter
        command = [sys.executable, __file__, str(address), *LIBRARIES]
        process = Forked(command, Path("/"), {**PLAIN_ENVIRONMENT, **thread_environment()}, stderr=False)
        try:
            wait_for(address, process)
            yield str(address)
        finally:
            process.kill()


def main() -> None:
    address, *modules = sys.argv[1:]
    sys.path.pop(0)  # where this file lies
    sys.dont_write_bytecode = True
    runpy.run_path(str(SANDBOX / "confine.py"))["die_with_parent"]()
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{address}.new")
    server.listen(64)
    os.rename(f"{address}.new", address)  # who finds it can connect
    sys.argv[1:] = [str(server.detach()), *modules]
    runpy.run_path(str(SANDBOX / "warm.py"), run_name="__main__")


if __name__ == "__main__":
    main()
