"""Reads a safetensors file that nobody vouches for: nothing in it is run, and no number in it is believed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from .items import shown

MB = 1_000_000
MAX_BYTES = 200 * MB
MAX_HEADER_BYTES = 4 * MB  # Stable Diffusion 1.4's LoRA has 0.03 MB
LENGTH_BYTES = 8
MAX_DIMENSIONS = 8  # of a weight; a convolution of videos has five, and NumPy takes no more than 64
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
# Of single numbers also these: some programs write a LoRA's alpha as a whole one.
WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
# What else is found under the name: its first bytes, and what that means.
OTHER_FORMATS = {
    b"PK": "is a zip archive, as torch.save writes it",
    b"\x80": "is a pickle, which can run any code",
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights themselves",
}


class TensorsError(ValueError):
    """A file whose tensors are not read; the message says why, and what to do."""


def header_problem(data: bytes) -> str | None:
    """What is wrong with the header of a file with these bytes, in half a sentence, or None."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if data[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        for start, meaning in OTHER_FORMATS.items():
            if data.startswith(start):
                return meaning
        return "has no safetensors header"
    if length > MAX_HEADER_BYTES:
        return f"claims a header of {length} bytes, of at most {MAX_HEADER_BYTES}"
    if LENGTH_BYTES + length > len(data):
        return "ends before its header does: it was not copied as a whole"
    try:
        json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    except (ValueError, RecursionError):
        return "has a header that is not JSON"
    return None


def to_float(name: str, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """An array of float32 or float64. Raises TensorsError for other kinds of numbers, and for what no weight is."""
    if len(shape) > MAX_DIMENSIONS:
        raise TensorsError(f"has {shown(name)} in {len(shape)} dimensions: hand in the file as its training wrote it")
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16  # bfloat16 is the upper half of float32
        return bits.view("<f4").reshape(shape)
    kinds = DTYPES if math.prod(shape) != 1 else {**DTYPES, **WHOLE}
    if dtype not in kinds:
        raise TensorsError(f"has {shown(name)} in {shown(dtype)}: store the weights in float32, float16 or bfloat16")
    array = np.frombuffer(data, kinds[dtype]).reshape(shape)
    return array if dtype in ("F32", "F64") else array.astype("<f4")


def read_tensors(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name, as float32 or float64.

    Raises:
        TensorsError: half a sentence, to be put after the file's name, that says what is wrong and what to do.
    """
    again = "hand in the file as its training wrote it"
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise TensorsError(f"has {size / MB:.0f} MB, of at most {max_bytes // MB}: {again}")
        data = path.read_bytes()
    except OSError as error:
        raise TensorsError(f"cannot be read ({error.strerror}): {again}") from None
    problem = header_problem(data)
    if problem:
        raise TensorsError(f"{problem}: {again}")
    try:
        found = deserialize(data)
    except (SafetensorError, OverflowError) as error:
        raise TensorsError(f"has a header that its contents contradict ({shown(error)}): {again}") from None
    return {name: to_float(name, facts["dtype"], facts["shape"], facts["data"]) for name, facts in found}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that stand beside the tensors, by name, in a file that `read_tensors` has read."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
    return header.get("__metadata__") or {}
