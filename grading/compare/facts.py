"""What of a hand-in is compared, read once from its files, none of which is trusted, and kept for the next start."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np

from ..files.archive import ArchiveError, unpack
from ..files.items import LORAS, TASK_1, WEIGHTS_FILE, Items, find_items, shown
from ..files.lora import LoraError, check_values, digest_of, matrices_of, read_pairs
from ..files.lora_likeness import save_canonical
from ..files.safe_tensors import TensorsError
from ..grades.results import write_atomically
from ..handed_out.banners import BannerError
from ..handed_out.record import FINETUNE, HANDED_OUT, ROOT, read_handed_out
from ..handed_out.taken import take_texts
from .look_into_pdf import SIDE, ReportUnreadable, look_into

FORMAT = 1  # of what is kept; another number makes it be read anew, as another hand-out does
TEXT_BYTES = 20_000  # of a TODO place
RECORDS = ("run.json", "trainer_state.json")
MAX_RECORD_BYTES, MAX_RECORDS = 200_000, 20
MIN_FILE_BYTES = 200  # smaller ones are equal by chance, such as an empty __init__.py
CHUNK, MAX_HASHED_BYTES = 1 << 20, 1 << 28


@dataclass(frozen=True)
class LoraFacts:
    """`file` and `weights` are SHA-256 of the file and of its matrices; `canonical` names what `cosines` reads."""

    base: str
    rank: int
    file: str
    weights: str
    canonical: str


@dataclass(frozen=True)
class Facts:
    """All that is compared of one hand-in.

    `pictures` are thumbnails in base 64; `todos` are texts by number; `records` are what a run was, by a digest of it;
    `files` are the names of the student's own files by SHA-256. `notes` say what could not be read, and why.
    """

    loras: Mapping[str, LoraFacts] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    text: str = ""
    todos: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def thumbnails(self) -> list[np.ndarray]:
        return [np.frombuffer(base64.b64decode(one), np.uint8).reshape(SIDE, SIDE, 3) for one in self.pictures]


def sha256_of(path: Path) -> str:
    """Of a file's content; of one that is too large for a hand-in, which will not be read, of its size too."""
    content, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < MAX_HASHED_BYTES and (data := file.read(CHUNK)):
            content.update(data)
    if size > MAX_HASHED_BYTES:
        content.update(f" {size}".encode())
    return content.hexdigest()


def key_of(hand_in: Path) -> str:
    """The same for a hand-in with the same content."""
    if hand_in.is_file():
        return sha256_of(hand_in)
    content = hashlib.sha256()
    for path in sorted(path for path in hand_in.rglob("*") if path.is_file() and not path.is_symlink()):
        content.update(f"{path.relative_to(hand_in)}\0{sha256_of(path)}\0".encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def lora_facts(path: Path, target: Path) -> LoraFacts:
    """Reads a LoRA and writes its canonical form. Raises LoraError, TensorsError, ValueError: half a sentence each."""
    tensors = matrices_of(path)
    base, pairs = read_pairs(path, tensors)
    check_values(tensors, pairs)
    save_canonical(pairs, target)
    return LoraFacts(base, max(len(pair.a) for pair in pairs.values()), sha256_of(path), digest_of(pairs), target.name)


def look_at_loras(items: Items, key: str, work: Path, facts: dict[str, Any]) -> None:
    for name in LORAS:
        path = getattr(items, name)
        if path is not None:
            try:
                facts["loras"][name] = lora_facts(path, work / f"{key}-{name}.safetensors")
            except (LoraError, TensorsError, ValueError, np.linalg.LinAlgError) as error:
                facts["notes"].append(f"{name} is not compared: it {error}.")


def look_at_report(items: Items, facts: dict[str, Any]) -> None:
    if items.report is None:
        return
    try:
        contents = look_into(items.report)
    except ReportUnreadable as error:
        facts["notes"].append(f"The report is not compared: it {error}.")
    else:
        facts["text"] = contents.text
        facts["pictures"] = tuple(base64.b64encode(one.tobytes()).decode() for one in contents.pictures)


def look_at_code(items: Items, facts: dict[str, Any]) -> None:
    if items.task_1 is None:
        return
    try:
        facts["todos"] = take_texts(items.task_1, TEXT_BYTES)
    except BannerError as error:
        facts["notes"].append(f"The TODO texts are not compared: {error}")


def records_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """What trainings have written of themselves, by the files' names in the hand-in."""
    paths = sorted(path for name in RECORDS for path in folder.rglob(name) if path.is_file())
    for path in paths[:MAX_RECORDS]:
        if path.stat().st_size <= MAX_RECORD_BYTES:
            try:
                yield path.relative_to(folder).as_posix(), json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                continue  # not what our trainings write, so no record


def look_at_records(folder: Path, facts: dict[str, Any]) -> None:
    for name, record in records_in(folder):
        settings = record.get("settings") if isinstance(record, dict) else None
        if isinstance(settings, dict) and isinstance(settings.get("data"), dict):
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
            facts["records"][digest] = f"{name}: trained on {shown(settings['data'].get('words'))}"


def look_at_files(folder: Path, facts: dict[str, Any]) -> None:
    """The student's own files: none that was handed out, no notebook, which has our text in it, and no LoRA."""
    given = {*read_handed_out(), *(f"{TASK_1}/{name}" for name in ("requirements.txt",))}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        own = name not in given and not name.startswith(f"{TASK_1}/{FINETUNE}/")
        if own and path.suffix != ".ipynb" and path.name not in (WEIGHTS_FILE, *RECORDS):
            digest, ours = sha256_of(path), ROOT / name
            if path.stat().st_size >= MIN_FILE_BYTES and not (ours.is_file() and sha256_of(ours) == digest):
                facts["files"][digest] = name


def read_facts(hand_in: Path, key: str, work: Path) -> Facts:
    """Everything that is compared of a hand-in; LoRAs in their canonical form are written into `work`."""
    facts: dict[str, Any] = {"loras": {}, "records": {}, "files": {}, "notes": []}
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        try:
            inside = unpack(hand_in, Path(folder).resolve() / "hand_in")
        except ArchiveError as error:
            return Facts(notes=(f"It is not compared: {error}",))
        items = find_items(inside)
        look_at_loras(items, key, work, facts)
        look_at_report(items, facts)
        look_at_code(items, facts)
        look_at_records(inside, facts)
        look_at_files(inside, facts)
    return Facts(**{**facts, "notes": (*items.problems, *facts["notes"])})


def made_by() -> str:
    """What the facts depend on beside the hand-in: what was handed out is nobody's own."""
    return f"{FORMAT} {sha256_of(HANDED_OUT)}"


def kept_facts(hand_in: Path, work: Path) -> Facts:
    """The facts of a hand-in, from an earlier start if it has not changed since."""
    try:
        key = key_of(hand_in)[:32]
    except OSError as error:  # the others can be compared
        return Facts(notes=(f"It is not compared: this machine cannot read it ({error.strerror}).",))
    file = work / f"{key}.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.pop("format") == made_by():
            loras = {name: LoraFacts(**one) for name, one in kept.pop("loras").items()}
            return Facts(loras, **{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
    facts = read_facts(hand_in, key, work)
    write_atomically(file, json.dumps({"format": made_by(), **asdict(facts)}))
    return facts
