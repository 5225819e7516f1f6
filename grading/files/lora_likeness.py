"""How alike LoRAs are: the cosine of what two of them add to the weights, computed from small matrices.

What a LoRA adds to a module is B A. With B1 A1 and B2 A2 as vectors, their inner product is the trace of
(B1^T B2) (A2 A1^T), which needs no matrix larger than the two ranks.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Iterator, Mapping, Sequence

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from .lora import Pair, matrices_of, read_pairs

# So many rows of all LoRAs together are multiplied at once: 2,048 take 17 MB for each of a few matrices.
CHUNK_ROWS = 2048
ALIKE = 0.99  # cosine; honest LoRAs of two people for one task come to 0.54


def canonical(pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """A LoRA in a form in which only its product counts, of norm 1 in all.

    The rows of each A, of shape (rank, in), are made orthonormal, and B^T, of shape (rank, out), takes what they lose:
    so a product of a huge and a tiny matrix, or one whose parts nearly cancel, is as exact as any other.

    Raises:
        ValueError: if what it adds is zero, or not finite.
    """
    tensors, squares = {}, []
    for module, pair in pairs.items():
        a = pair.a.astype(np.float64).reshape(len(pair.a), -1)
        b = pair.b.astype(np.float64).reshape(len(pair.b), -1)
        rows, mixing = np.linalg.qr(a.T)  # (in, rank), (rank, rank)
        tensors[f"{module}.a"] = rows.T
        tensors[f"{module}.b"] = mixing @ b.T
        squares.append(float(np.sum(np.square(tensors[f"{module}.b"]))))
    norm = math.sqrt(math.fsum(squares))
    if not 0 < norm < math.inf:
        raise ValueError("adds nothing, or nothing finite, to the weights")
    scaled = {name: value / norm if name.endswith(".b") else value for name, value in tensors.items()}
    return {name: np.ascontiguousarray(value, np.float32) for name, value in scaled.items()}


def save_canonical(pairs: Mapping[str, Pair], path: Path) -> None:
    """Writes what `cosines` reads. Raises ValueError as `canonical` does."""
    save_file(canonical(pairs), path)


def modules_of(files: Sequence[safe_open]) -> dict[str, list[int]]:
    """For each module the LoRAs that adapt it, by their places among the files."""
    found: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        for name in file.keys():
            if name.endswith(".a"):
                found.setdefault(name[: -len(".a")], []).append(i)
    return found


def chunks(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours that have at most CHUNK_ROWS rows together, or are one."""
    start, rows = 0, 0
    for i, size in enumerate(sizes):
        if i > start and rows + size > CHUNK_ROWS:
            yield slice(start, i)
            start, rows = i, 0
        rows += size
    yield slice(start, len(sizes))


def inner_products(ones: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The inner product of each two of N products B A, from (A, B^T) of shapes (rank, in) and (rank, out): (N, N)."""
    sizes = [len(a) for a, _ in ones]
    parts = list(chunks(sizes))
    stacked = [tuple(np.concatenate(matrices) for matrices in zip(*ones[part])) for part in parts]
    sums = [indicators(sizes[part]) for part in parts]
    result = np.empty((len(ones), len(ones)))
    for i, (first_a, first_b) in enumerate(stacked):
        for j in range(i, len(parts)):
            other_a, other_b = stacked[j]
            products = first_a @ other_a.T
            products *= first_b @ other_b.T
            result[parts[i], parts[j]] = sums[i].T @ (products @ sums[j])
            result[parts[j], parts[i]] = result[parts[i], parts[j]].T
    return result


def indicators(sizes: Sequence[int]) -> np.ndarray:
    """The matrix whose product adds up so many neighbours each; far faster than NumPy's reduceat."""
    return np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, axis=0)


def cosines(paths: Sequence[Path]) -> np.ndarray:
    """The cosine of each two of N LoRAs that `save_canonical` wrote, of one base model, shape (N, N).

    A module that only one of two adapts counts as zero in the other.
    """
    files = [safe_open(path, "numpy") for path in paths]
    total = np.zeros((len(files), len(files)))
    for module, owners in modules_of(files).items():
        ones = [(files[i].get_tensor(f"{module}.a"), files[i].get_tensor(f"{module}.b")) for i in owners]
        total[np.ix_(owners, owners)] += inner_products(ones)
    return np.clip(total, -1, 1)


def are_alike(first: Path, second: Path) -> bool:
    """Whether two good LoRAs add the same to one base but for rounding and scale, whatever their matrices are."""
    (base, pairs), (other_base, other_pairs) = (read_pairs(path, matrices_of(path)) for path in (first, second))
    if base != other_base:
        return False
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first", "second")]
        try:
            for one, path in zip((pairs, other_pairs), paths):
                save_canonical(one, path)
        except ValueError:  # one adds nothing: that is told where it is drawn with
            return False
        return bool(cosines(paths)[0, 1] > ALIKE)
