"""What a hand-in consists of, by the rules of the assignment, and where that is in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..report.words import STUDENT_ID

TASK_1 = "task_1_controlnet"
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
LORAS = {"lora_1": "Task 2-1", "lora_2": "Task 2-2"}
# What operating systems, Python and Jupyter leave behind: fine, and not unpacked.
ICON = "Icon\r"  # of a folder, as macOS calls the file
DROPPINGS = (
    "__MACOSX", ".DS_Store", "._*", ICON, "Thumbs.db", "desktop.ini", "~$*", "__pycache__", ".ipynb_checkpoints",
)  # fmt: skip
# How archives are called: those that are read, and all.
READABLE = (".zip", ".tar", ".tgz", ".gz")
ARCHIVES = (
    *READABLE, ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".lzma", ".zst", ".zipx", ".001", ".7z", ".rar", ".alz", ".egg",
)  # fmt: skip


@dataclass(frozen=True)
class Items:
    """What a hand-in consists of: a missing item is None and has its sentence in `problems`.

    `report` is a PDF, `task_1` a folder, `lora_1` and `lora_2` are files. `extra` names what does not belong there.
    """

    report: Path | None
    task_1: Path | None
    lora_1: Path | None
    lora_2: Path | None
    problems: tuple[str, ...]
    extra: tuple[str, ...]


def shown(name: object) -> str:
    """A name as it is put into messages: quoted, unprintable characters escaped, short."""
    text = str(name)
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def is_dropping(path: PurePosixPath) -> bool:
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in DROPPINGS)


def way_out(path: PurePosixPath) -> str:
    """What to do about a file that is too large: an item of the hand-in cannot be left out."""
    if path.name == WEIGHTS_FILE:
        return "train this LoRA with a lower rank"
    return "make its pictures smaller" if path.suffix.lower() == ".pdf" else "leave it out"


def is_item(path: Path, report: Path | None = None) -> bool:
    if path.name in (TASK_1, *LORAS):
        return path.is_dir()
    return path == report if report else path.suffix.lower() == ".pdf" and path.is_file()


def find_report(folder: Path) -> tuple[Path | None, str | None]:
    reports = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".pdf" and path.is_file()]
    if len(reports) == 1:
        return reports[0], None
    named = [path for path in reports if STUDENT_ID.fullmatch(path.stem)]
    if len(named) == 1:
        return named[0], None  # others beside it are told as what does not belong there
    if not reports:
        return None, f"The report is missing: put one PDF, named after your student id, beside {TASK_1}/."
    names = ", ".join(shown(path.name) for path in reports[:3])
    too_many = f"There are {len(reports)} PDFs beside {TASK_1}/ ({names})"
    return None, f"{too_many}: leave only the report, named after your student id."


def find_lora(folder: Path, name: str) -> tuple[Path | None, str | None]:
    path = folder / name / WEIGHTS_FILE
    if path.is_file():
        return path, None
    others = sorted(folder.glob(f"{name}/*.safetensors"))
    if others:
        return None, f"{name}/ has {shown(others[0].name)}: the LoRA of {LORAS[name]} must be named {WEIGHTS_FILE}."
    return None, f"The LoRA of {LORAS[name]} is missing: put {WEIGHTS_FILE}, which its training writes, into {name}/."


def find_items(folder: Path) -> Items:
    """The items in the folder that `unpack` returns; each missing one has a sentence that says what to do."""
    report, no_report = find_report(folder)
    task_1 = folder / TASK_1
    no_task_1 = None
    if not task_1.is_dir():
        task_1, no_task_1 = None, f"The code of Task 1 is missing: put your folder {TASK_1}/ on top of the hand-in."
    loras, no_loras = zip(*(find_lora(folder, name) for name in LORAS))
    extra = [path for path in folder.iterdir() if not is_item(path, report)]
    extra += [path for name in LORAS for path in (folder / name).glob("*") if path.name != WEIGHTS_FILE]
    return Items(
        report,
        task_1,
        *loras,
        problems=tuple(problem for problem in (no_report, no_task_1, *no_loras) if problem),
        extra=tuple(sorted(path.relative_to(folder).as_posix() for path in extra)),
    )
