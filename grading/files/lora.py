"""Judges a LoRA by its file alone: is it one, for which base model, is it whole, and was it trained?

    inspect_lora(Path("lora_1/pytorch_lora_weights.safetensors"))

reads the file as safetensors only, with numpy, so that nothing in it can run.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from .items import shown
from .lora_modules import Base, known_bases
from .safe_tensors import TensorsError, read_metadata, read_tensors

MB = 1_000_000
SD_1 = "Stable Diffusion 1.x"
UNKNOWN = "unknown"
# Of Stable Diffusion 1.x: 3.2 MB are rank 4 in float32 on the four projections of 32 attentions.
USUAL_BYTES, USUAL_RANK, USUAL_MODULES = (2.5 * MB, 4 * MB), 4, 128
# What knows the names that LoRAs are written with, and which of them Task 2 can load: a program of Task 2, as
# `grading` imports none of its code.
LAYOUTS_PROGRAM = Path(__file__).resolve().parents[2] / "task_2_lora" / "lora" / "layouts.py"
LAYOUTS_SECONDS = 60
# What a file says of its own making: by words for it, the texts that may say so, the first that is there counts.
SAID = {
    "base": ("ss_sd_model_name",),
    "data": ("finetune.data",),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "steps": ("ss_steps",),
    "rank": ("ss_network_dim",),
    "alpha": ("finetune.alpha", "ss_network_alpha"),
    "written by": ("finetune.program", "ss_network_module"),
    "version": ("finetune.version",),
}
SAID_LENGTH = 40


class LoraError(ValueError):
    """What is wrong with a LoRA, as half a sentence that follows the file's name."""


@dataclass(frozen=True)
class LoraReport:
    """What is known of a LoRA file; where it is not `ok`, `problem` is a sentence, and later facts may be missing.

    `rank` is the largest, if modules differ; `base` the base model's name or "unknown". `norms` has, by module such as
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", the Frobenius norm of what is added to its weight.
    `digest` is the same for equal weights, however they are stored. `warning` is for a size that is unusual. `said` is
    a sentence with what the file says of its own making, which proves nothing; harmless wherever it is shown.
    """

    ok: bool
    problem: str | None = None
    warning: str | None = None
    rank: int | None = None
    tensors: int = 0
    bytes: int = 0
    base: str = UNKNOWN
    digest: str = ""
    norms: Mapping[str, float] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Pair:
    """What a LoRA adds to a module's weight as two matrices, of shapes (rank, in, ...) and (out, rank, ...)."""

    a: np.ndarray
    b: np.ndarray

    def norm(self) -> float:
        """The Frobenius norm of B A, without computing the product."""
        a = self.a.astype(np.float64).reshape(len(self.a), -1)
        b = self.b.astype(np.float64).reshape(len(self.b), -1)
        return float(np.sqrt(max(0.0, float(np.sum((b.T @ b) * (a @ a.T))))))


@lru_cache(maxsize=8)
def loader_says(program: Path, question: str) -> str:
    """What the loader's program answers. A hand-in's LoRAs, read twice each, are mostly alike in what it asks for."""
    command = [sys.executable, "-I", str(program)]
    run = subprocess.run(
        command, input=question, stdout=subprocess.PIPE, text=True, check=True, timeout=LAYOUTS_SECONDS
    )
    return run.stdout


def ask_loader(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], bases: list[Base]) -> dict[str, Any]:
    """What the loader of Task 2 makes of a file: its base, and its sites. Raises LoraError if it would not load it."""
    bases_by_name = {
        base.name: {f"{part}.{module}": shape for part, own in base.shapes.items() for module, shape in own.items()}
        for base in bases
    }
    by_name = dict(sorted(tensors.items()))  # safetensors gives them in another order each time
    alphas = {name: tensor.item() for name, tensor in by_name.items() if name.endswith(".alpha") and tensor.size == 1}
    question = {
        "shapes": {name: tensor.shape for name, tensor in by_name.items()},
        "alphas": alphas,
        "metadata": dict(sorted(metadata.items())),
        "bases": bases_by_name,
    }
    try:
        answer = json.loads(loader_says(LAYOUTS_PROGRAM, json.dumps(question)))
    except subprocess.TimeoutExpired:
        again = "hand in the file as its training wrote it"
        raise LoraError(f"takes more than {LAYOUTS_SECONDS} s to look through: {again}") from None
    if "what" in answer:
        raise LoraError(f"{answer['what']}: {answer['advice'].replace('use ', 'hand in ', 1)}")
    return answer


def matrices_of(path: Path) -> dict[str, np.ndarray]:
    """A LoRA's tensors by name, in float32, as models compute. Raises TensorsError."""
    with np.errstate(over="ignore"):  # too large a number becomes infinite, which `check_values` looks for
        return {name: tensor.astype("<f4", copy=False) for name, tensor in read_tensors(path).items()}


def read_pairs(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Pair]]:
    """The base of a LoRA with these tensors, and its matrices by module, with alpha / rank in B. Raises LoraError."""
    answer = ask_loader(tensors, read_metadata(path), known_bases())
    sites = answer["sites"].items()
    with np.errstate(over="ignore"):  # `check_values` looks for what came of it
        return answer["base"], {
            module: Pair(tensors[site["a"]], tensors[site["b"]] * np.float32(site["scale"])) for module, site in sites
        }


def check_values(tensors: Mapping[str, np.ndarray], pairs: Mapping[str, Pair]) -> None:
    """Raises LoraError for weights that are not finite, or that change nothing."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise LoraError(f"has values in {shown(name)} that are not finite: train again with a lower learning rate")
    for module, pair in pairs.items():
        if not np.isfinite(pair.b).all():  # with the scale in it
            raise LoraError(f"has an alpha at {shown(module)} that no number is left for: train the LoRA again")
    if not any(module.startswith("unet.") for module in pairs):
        raise LoraError("adapts only the text encoder: train a LoRA on the UNet")
    if not any(pair.b.any() for pair in pairs.values()):
        raise LoraError("was never trained (all B matrices are zero): run the training to its end")
    if not any(pair.a.any() for pair in pairs.values()):
        raise LoraError("changes nothing (all A matrices are zero): train again with the given programs")


def digest_of(pairs: Mapping[str, Pair]) -> str:
    content = hashlib.sha256()
    for module, pair in pairs.items():
        content.update(f"{module} {pair.a.shape} {pair.b.shape}".encode())
        for matrix in (pair.a, pair.b):
            content.update(np.ascontiguousarray(matrix, "<f4").tobytes())
    return content.hexdigest()


def said_by(metadata: Mapping[str, str]) -> str:
    """What a file says of its own making, in a sentence; empty if it says nothing.

    Anybody may have written it: what is not a letter, a digit or plain punctuation becomes a question mark, so that it
    is neither HTML nor Markdown, and no link.
    """
    found = []
    for words, names in SAID.items():
        text = next((metadata[name] for name in names if metadata.get(name)), "")
        if text:
            cut = text if len(text) <= SAID_LENGTH else text[: SAID_LENGTH - 3] + "..."
            found.append(f"{words} '{re.sub(r'[^A-Za-z0-9 .,()/+_-]', '?', cut)}'")
    return f"By its own account: {', '.join(found)}." if found else ""


def size_warning(bytes_: int, rank: int, modules: int) -> str | None:
    """A sentence if the file of a LoRA of Stable Diffusion 1.x has not about 3 MB."""
    if USUAL_BYTES[0] <= bytes_ <= USUAL_BYTES[1]:
        return None
    return (
        f"It has {bytes_ / MB:.1f} MB, where about 3 MB are usual: its rank is {rank} (usual: {USUAL_RANK}), it adapts "
        f"{modules} modules (usual: {USUAL_MODULES})."
    )


def examine(path: Path, facts: dict[str, Any]) -> None:
    """Puts what is found out into `facts`, step by step. Raises LoraError or TensorsError."""
    tensors = matrices_of(path)
    facts["tensors"] = len(tensors)
    facts["said"] = said_by(read_metadata(path))
    facts["base"], pairs = read_pairs(path, tensors)
    facts["rank"] = max(len(pair.a) for pair in pairs.values())
    check_values(tensors, pairs)
    facts["norms"] = {module: pair.norm() for module, pair in pairs.items()}
    facts["digest"] = digest_of(pairs)
    if facts["base"] == SD_1:
        facts["warning"] = size_warning(facts["bytes"], facts["rank"], len(pairs))


def plain_tensors(path: Path) -> dict[str, np.ndarray]:
    """The matrices of a LoRA that `inspect_lora` called good, in the plainest layout and without anything else."""
    _, pairs = read_pairs(path, matrices_of(path))
    a = {f"{module}.lora_A.weight": pair.a for module, pair in pairs.items()}
    b = {f"{module}.lora_B.weight": pair.b for module, pair in pairs.items()}
    return {**a, **b}


def inspect_lora(path: Path) -> LoraReport:
    """Reads and judges a LoRA file. Raises nothing for what the file may be or hold: that is the report's `problem`."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size if path.is_file() else 0}
    try:
        examine(path, facts)
    except (LoraError, TensorsError) as error:
        return LoraReport(False, f"{shown(path.name)} {error}.", **facts)
    return LoraReport(True, **facts)
