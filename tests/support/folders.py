"""Folders of small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))


def fill(folder: Path, *names: str) -> Path:
    """Puts picture 0, 1, ... under these names."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    return folder


def list_in(folder: Path, *rows: dict, encoding: str = "utf-8") -> Path:
    """Writes a metadata.jsonl with these lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding=encoding)
    return folder
