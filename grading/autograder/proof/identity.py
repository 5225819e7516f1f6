"""What a result that is computed once was made of: when any of it differs, it is computed again."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from ..alignment import BASE, BASE_FILES
from ..student_code import ROOT

LIBRARIES = (
    "accelerate", "diffusers", "numpy", "peft", "pillow", "safetensors", "scikit-image", "scipy", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
CPU = Path("/proc/cpuinfo")
# Of a folder's files: code, pictures, settings, and what was handed out.
KINDS = (".py", ".png", ".json", ".toml", ".gz")


def identity(code: Sequence[str], settings: Any) -> dict[str, str]:
    """Digests by what they are of: code, base model, settings, libraries, processor.

    Args:
        code: folders of this repository.
        settings: what JSON can hold.
    """
    files = [path for folder in code for path in (ROOT / folder).rglob("*") if counts(path)]
    base = [path for path in (ROOT / BASE).rglob("*") if path.is_file() and not is_left_out(path)]
    versions = {name: version_of(name) for name in LIBRARIES}
    return {
        "code": digest_of(files),
        "base": digest_of(base),
        "settings": digest(json.dumps(settings, default=str, sort_keys=True).encode()),
        "libraries": json.dumps({**versions, "python": platform.python_version()}),
        "processor": digest(processor().encode()),
    }


def counts(path: Path) -> bool:
    return path.is_file() and path.suffix in KINDS and "__pycache__" not in path.parts


def is_left_out(path: Path) -> bool:
    """Whether a file of the base model's folder is none of its weights and settings."""
    parts = path.relative_to(ROOT / BASE).parts
    return any(Path(part).match(pattern) for part in parts for pattern in BASE_FILES)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(paths: Sequence[Path]) -> str:
    named = sorted((path.relative_to(ROOT).as_posix(), path) for path in paths)
    return digest("".join(f"{name} {digest(path.read_bytes())}\n" for name, path in named).encode())


def version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def processor(info: Path = CPU) -> str:
    """What decides which instructions the libraries take: the kind of processor and what it can."""
    try:
        lines = info.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features"))
