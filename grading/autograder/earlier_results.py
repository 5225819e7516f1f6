"""What an earlier start has graded: it is taken up, and not done again, if nothing that it was made of has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..grades.numbers import Numbers
from ..grades.results import is_graded, write_atomically
from .job import RESULTS
from .proof.identity import identity

KEPT = "graded.json"
CODE = ("grading", "task_1_controlnet", "task_2_lora", "finetune")


def grader_key(numbers: Numbers, quick: bool) -> str:
    """Differs where the grader does: its code, its numbers, the libraries."""
    return json.dumps(identity(CODE, [asdict(numbers), quick]), sort_keys=True)


def key_of(content: str, grader: str) -> str:
    """Differs where the hand-in's files (`digest_of` them) or the grader do."""
    return hashlib.sha256(f"{grader}\0{content}".encode()).hexdigest()


def digest_of(hand_in: Path) -> str:
    """Differs where the hand-in's files do. Raises OSError if one cannot be read."""
    digest = hashlib.sha256()
    paths = sorted(hand_in.rglob("*")) if hand_in.is_dir() else [hand_in]
    for path in paths:
        digest.update(f"{path.relative_to(hand_in)!s}\0{path.is_file()}\0".encode(errors="surrogateescape"))
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digest.update(of_content(file))
    return digest.hexdigest()


def of_content(file: Any) -> bytes:
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.digest()


def keep(folder: Path, key: str, rows: Sequence[Mapping[str, Any]], content: str, changed: str | None) -> None:
    """Keeps with the results in a hand-in's folder what they were made of, and the pictures for the page."""
    kept = {"key": key, "rows": list(rows), "content": content, "changed": changed}
    write_atomically(folder / KEPT, json.dumps(kept))


def last_change(folder: Path, content: str, now: str) -> str | None:
    """When it was first seen that the hand-in's files had changed; None if no earlier start knows other ones."""
    try:
        kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("changed") if kept.get("content") in (None, content) else now


def take_up(folder: Path, key: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Results and pictures of an earlier start, if there are any with this key, and grading did not fail then."""
    try:
        kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none, or one that was not finished
    whole = isinstance(results, dict) and "extra_data" in results
    fits = whole and (is_graded(results) or results["extra_data"].get("quick")) and kept.get("key") == key
    return (results, kept["rows"]) if fits else None
