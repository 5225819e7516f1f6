"""One folder, one training at a time; and what several programs would make, one of them makes."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, TextIO

from .checkpoints import CheckpointError
from .notes import say_once
from .processes import is_main_process

try:
    import fcntl
except ImportError:  # on Windows: there no folder is locked
    fcntl = None

LOCK_FILE = ".lock"
# The open lock files of the folders that this process trains in: the locks go when the process does, however it ends.
_locked: dict[Path, TextIO] = {}


def lock(folder: Path) -> None:
    """Keeps other trainings out of a folder until this process ends, however it does; makes the folder.

    Of several processes that train together the main one has it. Where there are no locks, nothing is locked.

    Raises:
        CheckpointError: if another training is running there.
    """
    place = folder.resolve()
    if fcntl is None or place in _locked or not is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK_FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which forked workers, unlike an open file, do not inherit
    except OSError as error:
        with file:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                say_once(f"the disk of {folder} has no locks ({error}): do not start two trainings in it at once.")
                return
            time.sleep(0.2)  # whoever has just locked it is still writing who it is
            file.seek(0)
            raise CheckpointError(
                f"Another training is running in {folder} (process {file.read()}): wait for it, or choose another "
                f"--output_dir."
            ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locked[place] = file


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Waits while another program is making `target`, which must not be there half: whoever comes second finds it.

    Of several processes that train together the main one waits. Where there are no locks, nobody does.
    """
    if fcntl is None or not is_main_process():
        yield
        return
    path = target.with_name(f".{target.name}{LOCK_FILE}")
    file = _own(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # where a disk has no locks, another program may have removed it
        file.close()


def _own(path: Path) -> TextIO:
    """The open file at `path`, locked for this program alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say_once(f"another program is making {path.parent / path.name[1 : -len(LOCK_FILE)]}: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say_once(f"the disk of {path.parent} has no locks ({error}): start one program at a time there.")
            return file
        # Who had it has removed it: a third program may have made and locked another one of that name by now.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
