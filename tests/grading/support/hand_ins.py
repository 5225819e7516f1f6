"""Hand-ins for the tests of the grader: a good one, as a dictionary of files that may be spoilt, and a zip of it."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save, save_file

from grading.files.items import TASK_1, WEIGHTS_FILE
from grading.files.lora_modules import SD_1_TEXT_ENCODER, SD_1_UNET, base_from, known_bases
from grading.handed_out.banners import TODO_FILES, find_places
from grading.handed_out.record import FINETUNE, ROOT, code_files

PDF = "20241234.pdf"
LORA_1, LORA_2 = f"lora_1/{WEIGHTS_FILE}", f"lora_2/{WEIGHTS_FILE}"
FILE_OF = {todo: f"{TASK_1}/{name}" for name, todos in TODO_FILES.items() for todo in todos}


def report(pages: int = 2) -> bytes:
    picture, file = Image.effect_noise((80, 60), 50), io.BytesIO()
    picture.save(file, "PDF", save_all=True, append_images=[picture] * (pages - 1))
    return file.getvalue()


def lora_tensors(seed: int, b: float = 0.02, sd_1: bool = False) -> dict[str, np.ndarray]:
    """Random matrices for the attention of the embedded base or of Stable Diffusion 1; `b` is the deviation of B."""
    base = base_from("SD", SD_1_UNET, SD_1_TEXT_ENCODER) if sd_1 else known_bases()[1]
    source = np.random.default_rng(seed)
    tensors = {}
    for module, shape in base.shapes["unet"].items():
        if ".attn" in module:
            tensors[f"unet.{module}.lora_A.weight"] = source.normal(size=(4, shape[1])).astype(np.float32)
            tensors[f"unet.{module}.lora_B.weight"] = (b * source.normal(size=(shape[0], 4))).astype(np.float32)
    return tensors


@lru_cache(maxsize=1)
def good_files() -> dict[str, bytes]:
    folders = {TASK_1: ROOT / TASK_1, f"{TASK_1}/{FINETUNE}": ROOT / FINETUNE}
    files = {f"{to}/{name}": path.read_bytes() for to, of in folders.items() for name, path in code_files(of).items()}
    return {**files, PDF: report(), LORA_1: save(lora_tensors(1)), LORA_2: save(lora_tensors(2))}


def hand_in(**changes: bytes | None) -> dict[str, bytes]:
    """The good one with some files replaced by others, or by nothing."""
    files = {**good_files(), **changes}
    return {name: content for name, content in files.items() if content is not None}


def with_text(todo: str, text: str) -> dict[str, bytes]:
    """The good one with another text between the banners of a TODO; its lines get the place's indentation."""
    source = good_files()[FILE_OF[todo]].decode()
    place = find_places(source)[todo]
    indented = "".join(f"{place.indent}{line}\n" for line in text.strip("\n").split("\n"))
    return hand_in(**{FILE_OF[todo]: (source[: place.start] + indented + source[place.end :]).encode()})


def write_zip(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def save_weights(path: Path, more: float = 0.0) -> None:
    """Those of a ControlNet as small as can be, with something added to the last number."""
    weights = np.ones((4, 3), np.float32)
    weights[-1, -1] += more
    save_file({"conv.weight": weights}, path)
