"""Checkpoints that survive anything: a folder `checkpoint-N` is either whole or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable

STATE_FILE = "trainer_state.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


def _flush(*paths: Path) -> None:
    """Forces files and folders from the system's cache to the disk.

    Windows opens no folder, whose entries it keeps by itself, and flushes only what may be written.
    """
    posix = hasattr(os, "O_DIRECTORY")
    for path in paths:
        if not posix and path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
        try:
            # Without it a rename may reach the disk before what is renamed: after a power cut it is there, and empty.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The finished checkpoints, in the order in which they were written: a run may have gone on from an older step."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    # That file is written last.
    finished = [path for path in found if (path / STATE_FILE).is_file()]
    return sorted(finished, key=lambda path: (written(path), int(path.name.split("-")[1])))


def written(checkpoint: Path) -> int:
    """How many checkpoints were written into its folder before; 0 where that was not counted yet."""
    return json.loads((checkpoint / STATE_FILE).read_text()).get("written", 0)


def next_number(output_dir: Path) -> int:
    """What `written` shall say of the next checkpoint."""
    return 1 + max(map(written, list_checkpoints(output_dir)), default=0)


def find_checkpoint(output_dir: Path, which: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for: `latest` (None if there is none yet) or a path.

    Raises:
        CheckpointError: if a path is not a finished checkpoint.
    """
    if which == "latest":
        finished = list_checkpoints(output_dir)
        return finished[-1] if finished else None
    for path in (Path(which), Path(output_dir) / which):
        if (path / STATE_FILE).is_file():
            return path
    known = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
    raise CheckpointError(f"{which!r} is not a finished checkpoint. Finished ones in {output_dir}: {known}.")


def newest_in_words(output_dir: Path) -> str:
    found = find_checkpoint(output_dir, "latest")
    if found is None:
        return "There is no checkpoint yet."
    return f"The last good checkpoint is {found}; go on from it with --resume_from_checkpoint latest."


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's step, settings and number. Raises CheckpointError if another release of this code wrote it."""
    state = json.loads((checkpoint / STATE_FILE).read_text())
    if "written" not in state:
        raise CheckpointError(
            f"{checkpoint} was written by an older release of this program: finish the run with that, choose another "
            f"--output_dir, or remove {checkpoint.parent}."
        )
    return state


def give_rights(*files: Path) -> None:
    """The rights of any new file there, by the umask: safetensors 0.8 keeps what it writes to its owner alone."""
    for file in files:
        # A file made to look at: the umask itself can only be read by setting it, for all threads.
        new = file.with_name(f".{file.name}.new")
        new.touch()
        file.chmod(new.stat().st_mode & 0o777)
        new.unlink()


def start_folder(target: Path) -> Path:
    """An empty temporary folder beside `target`; `finish_folder` turns it into `target`."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def finish_folder(temporary: Path, target: Path) -> None:
    """Flushes the temporary folder to the disk and renames it to `target`, whose old content goes only after that."""
    give_rights(*[path for path in temporary.rglob("*") if path.is_file()])
    _flush(*temporary.rglob("*"), temporary)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed before it could
    # A folder cannot be replaced in one go as a file can: should all stop between the next two lines, the old one is
    # still there, under another name.
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    # The rename is an entry of the folder above.
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """A text file that is whole or as it was before, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")  # a card has prompts in it, in any language
    _flush(temporary)
    os.replace(temporary, path)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a temporary folder, which becomes `target` when it is whole.

    Raises:
        CheckpointError: if writing fails (a full disk, say). What was at `target` before is still there.
    """
    temporary = start_folder(target)
    try:
        write(temporary)
        finish_folder(temporary, target)
    except Exception as error:  # whatever stops the writing: the half-written folder goes, the reason is told
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"Cannot write {target}: {error}\nIs the disk full? Free space, then resume.") from error


def remove_old(output_dir: Path, limit: int | None) -> None:
    """Keeps the newest `limit` checkpoints, and removes what a killed run left unfinished."""
    for leftover in Path(output_dir).glob(".checkpoint-*.tmp"):
        shutil.rmtree(leftover)
    if limit is not None:
        for path in list_checkpoints(output_dir)[: -limit or None]:
            shutil.rmtree(path)
