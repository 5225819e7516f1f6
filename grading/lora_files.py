"""Judges a LoRA by its file alone: is it one, for which base model, is it whole, and was it trained?

    inspect_lora(Path("lora_1/pytorch_lora_weights.safetensors"))

reads the file as safetensors only, with numpy, so that nothing in it can run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from .items import WEIGHTS_FILE, shown
from .lora_modules import Base, known_bases
from .tensors import TensorsError, read_tensors

MB = 1_000_000
SD_1 = "Stable Diffusion 1.x"
UNKNOWN = "unknown"
# Of Stable Diffusion 1.x: 3.2 MB are rank 4 in float32 on the four projections of 32 attentions.
USUAL_BYTES, USUAL_RANK, USUAL_MODULES = (2.5 * MB, 4 * MB), 4, 128
# diffusers has spelled the two matrices in several ways, such as `to_q.lora_A.weight` and `to_q.lora.down.weight`.
MATRIX = re.compile(
    r"(?P<part>unet|text_encoder)\.(?:text_model\.)?(?P<module>.+?)"
    r"(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<matrix>A|B|down|up)\.weight"
)
# Files that are often taken for the right one, by what stands in a tensor's name.
OTHER_LAYOUTS = {
    re.compile(r"lora_(unet|te\d?)_"): "is in Kohya's layout, which other programs read",
    re.compile(r".*\.lora_[AB]\.\w+\.weight"): "is a checkpoint from the middle of a training",
    re.compile(r"base_model\.model\..*"): "is in PEFT's layout",
}


class LoraError(ValueError):
    """What is wrong with a LoRA, as half a sentence that follows the file's name."""


@dataclass(frozen=True)
class LoraReport:
    """What is known of a LoRA file; where it is not `ok`, `problem` is a sentence, and later facts may be missing.

    `rank` is the largest, if modules differ; `base` the base model's name or "unknown". `norms` has, by module such as
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", the Frobenius norm of what is added to its weight.
    `digest` is the same for equal weights, however they are stored. `warning` is for a size that is unusual.
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


@dataclass(frozen=True)
class Pair:
    """A module's matrices, of shapes (rank, in, ...) and (out, rank, ...)."""

    a: np.ndarray
    b: np.ndarray

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the product has a weight's shape (out, in, ...); B is a 1x1 convolution where A is one."""
        return (
            self.a.shape == (self.a.shape[0], *shape[1:])
            and self.b.shape == (shape[0], self.b.shape[1], *(1 for _ in shape[2:]))
            and self.a.shape[0] == self.b.shape[1] > 0
        )

    def norm(self) -> float:
        """The Frobenius norm of B A, without computing the product."""
        a = self.a.astype(np.float64).reshape(len(self.a), -1)
        b = self.b.astype(np.float64).reshape(len(self.b), -1)
        return float(np.sqrt(max(0.0, float(np.sum((b.T @ b) * (a @ a.T))))))


def module_of(name: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and "A" or "B". Raises LoraError if it is none of a LoRA's."""
    match = MATRIX.fullmatch(name)
    if match:
        module = match["module"].replace(".processor.", ".")
        module = re.sub(r"\.to_out$", ".to_out.0", module)
        return f"{match['part']}.{module}", {"down": "A", "up": "B"}.get(match["matrix"], match["matrix"])
    for pattern, meaning in OTHER_LAYOUTS.items():
        if pattern.match(name):
            raise LoraError(f"{meaning}: hand in {WEIGHTS_FILE}, which the training writes when it ends")
    if "lora" not in name.lower():
        raise LoraError(f"holds whole weights such as {shown(name)}, not only a LoRA: hand in {WEIGHTS_FILE}")
    raise LoraError(f"has a tensor {shown(name)}, which no LoRA of diffusers has: train it with task_2_lora's programs")


def pair_up(tensors: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """The matrices by module. Raises LoraError if one has no partner, or if their ranks differ."""
    if not tensors:
        raise LoraError("holds no weights at all: train the LoRA again")
    matrices: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        module, matrix = module_of(name)
        matrices.setdefault(module, {})[matrix] = tensor
    pairs = {}
    for module, found in sorted(matrices.items()):
        if len(found) < 2:
            missing = "AB".replace("".join(found), "")
            raise LoraError(f"lacks the matrix {missing} of {shown(module)}: hand in the file as its training wrote it")
        a, b = found["A"], found["B"]
        if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise LoraError(
                f"has matrices of shapes {a.shape} and {b.shape} at {shown(module)}, which are not (rank, in) and "
                "(out, rank): hand in the file as its training wrote it"
            )
        pairs[module] = Pair(a, b)
    return pairs


def mismatch(base: Base, pairs: Mapping[str, Pair]) -> tuple[int, str]:
    """How many modules do not fit a base model, and half a sentence about the first one."""
    wrong, first = 0, ""
    for name, pair in pairs.items():
        part, _, module = name.partition(".")
        shape = base.shapes[part].get(module)
        if shape is not None and pair.fits(shape):
            continue
        wrong += 1
        product = (len(pair.b), *pair.a.shape[1:])
        facts = f"is for a weight of shape {product}, not {shape}" if shape else "is on no module that can be adapted"
        first = first or f"its part for {shown(name)} {facts}"
    return wrong, first


def base_of(pairs: Mapping[str, Pair], bases: list[Base]) -> str:
    """The name of the base model that all modules belong to. Raises LoraError if there is none."""
    if not any(name.startswith("unet.") for name in pairs):
        raise LoraError("adapts only the text encoder: train a LoRA on the UNet")
    mismatches = {base.name: mismatch(base, pairs) for base in bases}
    best = min(mismatches, key=lambda name: mismatches[name][0])
    wrong, first = mismatches[best]
    if wrong:
        names = " nor ".join(mismatches)
        raise LoraError(f"fits {'neither ' if len(bases) > 1 else 'not '}{names} ({first}): train it on one of these")
    return best


def check_values(tensors: Mapping[str, np.ndarray], pairs: Mapping[str, Pair]) -> None:
    """Raises LoraError for weights that are not finite, or that change nothing."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise LoraError(f"has values in {shown(name)} that are not finite: train again with a lower learning rate")
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


def size_warning(bytes_: int, rank: int, modules: int) -> str | None:
    """A sentence if the file of a LoRA of Stable Diffusion 1.x has not about 3 MB."""
    if USUAL_BYTES[0] <= bytes_ <= USUAL_BYTES[1]:
        return None
    return (
        f"It has {bytes_ / MB:.1f} MB, where about 3 MB are usual: its rank is {rank} (usual: {USUAL_RANK}), it adapts "
        f"{modules} modules (usual: {USUAL_MODULES})."
    )


def examine(tensors: Mapping[str, np.ndarray], bases: list[Base], facts: dict[str, Any]) -> None:
    """Puts what is found out into `facts`, step by step. Raises LoraError."""
    facts["tensors"] = len(tensors)
    pairs = pair_up(tensors)
    facts["rank"] = max(len(pair.a) for pair in pairs.values())
    facts["base"] = base_of(pairs, bases)
    check_values(tensors, pairs)
    facts["norms"] = {module: pair.norm() for module, pair in pairs.items()}
    facts["digest"] = digest_of(pairs)
    if facts["base"] == SD_1:
        facts["warning"] = size_warning(facts["bytes"], facts["rank"], len(pairs))


def inspect_lora(path: Path) -> LoraReport:
    """Reads and judges a LoRA file. Raises nothing for what the file may be or hold: that is the report's `problem`."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size if path.is_file() else 0}
    try:
        examine(read_tensors(path), known_bases(), facts)
    except (LoraError, TensorsError) as error:
        return LoraReport(False, f"{shown(path.name)} {error}.", **facts)
    return LoraReport(True, **facts)
