"""Writes the zip of a hand-in: the assignment's items, and in Task 1's folder all that it needs to run alone."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Mapping

from ..files.archive import ARCHIVES, ArchiveError, find_items, is_dropping, unpack
from ..files.items import TASK_1, WEIGHTS_FILE
from ..handed_out.record import FINETUNE, ROOT

REQUIREMENTS = "requirements.txt"
# Not Task 1's code or data: results, environments, and weights, which are too large.
LEFT_OUT_FOLDERS = ("runs", "build", "logs", "wandb", "venv", "env")
LEFT_OUT_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".npy", ".npz", *ARCHIVES)
# Every entry has the same date and mode, so that the same input gives the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)
MODE = 0o100644


def is_left_out(path: Path, name: PurePosixPath) -> bool:
    if name.name.startswith(".") or path.is_symlink():
        return True
    return name.name in LEFT_OUT_FOLDERS if path.is_dir() else name.name.lower().endswith(LEFT_OUT_FILES)


def task_1_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder of Task 1 that are handed in, by name, and the names of what is left out, but droppings.

    The copy of `finetune` and the requirements that an earlier zip may have brought along are in neither.
    """
    files: dict[str, Path] = {}
    left_out = []
    waiting = [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            name = PurePosixPath(path.relative_to(folder).as_posix())
            if is_dropping(name) or str(name) in (FINETUNE, REQUIREMENTS):
                continue
            if is_left_out(path, name):
                left_out.append(str(name))
            elif path.is_dir():
                waiting.append(path)
            else:
                files[str(name)] = path
    return files, sorted(left_out)


def requirements(root: Path = ROOT) -> bytes:
    """The repository's requirements but itself, as its `finetune` is in the zip."""
    lines = (root / REQUIREMENTS).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("-e ")).encode()


def zip_contents(
    student_id: str, task_1: Path, finetune: Path, lora_1: Path, lora_2: Path, report: Path
) -> tuple[dict[str, bytes], list[str]]:
    """The zip's files by name, and the names of what is left out of Task 1's folder."""
    code, left_out = task_1_files(task_1)
    code.update({f"{FINETUNE}/{name}": path for name, path in task_1_files(finetune)[0].items()})
    files = {f"{TASK_1}/{name}": path.read_bytes() for name, path in code.items()}
    files[f"{TASK_1}/{REQUIREMENTS}"] = requirements()
    files[f"{student_id}.pdf"] = report.read_bytes()
    files[f"lora_1/{WEIGHTS_FILE}"] = lora_1.read_bytes()
    files[f"lora_2/{WEIGHTS_FILE}"] = lora_2.read_bytes()
    return files, left_out


def write_zip(files: Mapping[str, bytes], path: Path) -> None:
    """Writes a zip that appears whole or not at all, and is one that the grader unpacks.

    Raises:
        ArchiveError: if the grader would not take it, as when it is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as temporary:
        whole = Path(temporary) / path.name
        with zipfile.ZipFile(whole, "w") as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, DATE)
                info.create_system, info.external_attr = 3, MODE << 16
                archive.writestr(info, files[name], zipfile.ZIP_DEFLATED)
        problems = find_items(unpack(whole, Path(temporary) / "unpacked")).problems
        if problems:
            raise ArchiveError(problems[0])
        os.replace(whole, path)
