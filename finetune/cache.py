"""Latents and text embeddings, computed once and kept on disk: nothing that stays the same is computed twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .base import BaseModel
from .checkpoints import write_folder
from .images import square, to_tensor

CACHE_FILE = "cache.json"
PROMPTS_FILE = "prompts.json"


class Encodings:
    """Memory-mapped latents of every image and embeddings of every prompt; equal prompts are stored once."""

    def __init__(self, folder: Path) -> None:
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
        self.prompt_of_sample = np.load(folder / "prompt_of_sample.npy", mmap_mode="r")
        self.prompts: list[str] = json.loads((folder / PROMPTS_FILE).read_text())

    def __len__(self) -> int:
        return len(self.latents)

    def text(self, index: int) -> str:
        return self.prompts[self.prompt_of_sample[index]]

    def sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (4, height / 8, width / 8) and text embeddings (tokens, cross_attention_dim), float32."""
        latents, embedding = self.latents[index], self.embeddings[self.prompt_of_sample[index]]
        return torch.from_numpy(np.array(latents, np.float32)), torch.from_numpy(np.array(embedding, np.float32))


class Samples(Dataset):
    """What a training sees: item i is its `text` with `latents` and `text_embeddings`.

    Without encodings it is the `text` and the `image`, (3, resolution, resolution) in -1..1, to compute them from.
    """

    def __init__(self, data: Any, resolution: int, encodings: Encodings | None) -> None:
        self.data = data
        self.resolution = resolution
        self.encodings = encodings

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.encodings is None:
            sample = self.data[index]
            return {"image": to_tensor(square(sample["image"], self.resolution)) * 2 - 1, "text": sample["text"]}
        latents, text_embeddings = self.encodings.sample(index)
        return {"latents": latents, "text_embeddings": text_embeddings, "text": self.encodings.text(index)}


def load_encodings(
    base: BaseModel, data: Any, resolution: int, cache_dir: Path, accelerator: Accelerator, num_workers: int = 0
) -> Encodings:
    """The data's encodings by this base model at this resolution: from `cache_dir` if they are there, else computed.

    Args:
        data: `len`, items with `image` (PIL) and `text`, and a string `fingerprint`.

    Raises:
        CheckpointError: if the cache cannot be written.
    """
    # Half precision is stored only where it is computed: in float32, cached and uncached training are the same.
    dtype = "float32" if accelerator.mixed_precision == "no" else "float16"
    key = {
        "format": 2,
        "base": base.fingerprint(),
        "data": data.fingerprint,
        "samples": len(data),
        "resolution": resolution,
        "dtype": dtype,
    }
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    with accelerator.main_process_first():
        if not _is_valid(folder, key, base, data, resolution, accelerator):
            loader = DataLoader(Samples(data, resolution, None), batch_size=16, num_workers=num_workers)
            write_folder(folder, lambda temporary: _write(temporary, key, base, loader, accelerator))
    return Encodings(folder)


def _write(folder: Path, key: dict[str, Any], base: BaseModel, loader: DataLoader, accelerator: Accelerator) -> None:
    latents = None
    prompts: dict[str, int] = {}
    prompt_of_sample = np.zeros(key["samples"], np.int64)
    start = 0
    for samples in tqdm(loader, desc="Encoding images once", disable=not accelerator.is_local_main_process):
        with accelerator.autocast():
            batch = base.encode_images(samples["image"]).cpu().numpy()
        if latents is None:
            shape = (key["samples"], *batch.shape[1:])
            latents = np.lib.format.open_memmap(str(folder / "latents.npy"), "w+", key["dtype"], shape)
        latents[start : start + len(batch)] = batch
        prompt_of_sample[start : start + len(batch)] = [
            prompts.setdefault(text, len(prompts)) for text in samples["text"]
        ]
        start += len(batch)
    latents.flush()
    np.save(folder / "prompt_of_sample.npy", prompt_of_sample)

    embeddings = None
    unique = list(prompts)
    (folder / PROMPTS_FILE).write_text(json.dumps(unique))
    for start in tqdm(range(0, len(unique), 64), desc="Encoding prompts once", leave=False):
        with accelerator.autocast():
            batch = base.encode_prompts(unique[start : start + 64]).cpu().numpy()
        if embeddings is None:
            shape = (len(unique), *batch.shape[1:])
            embeddings = np.lib.format.open_memmap(str(folder / "embeddings.npy"), "w+", key["dtype"], shape)
        embeddings[start : start + len(batch)] = batch
    embeddings.flush()
    (folder / CACHE_FILE).write_text(json.dumps(key, indent=2) + "\n")


def _is_valid(
    folder: Path, key: dict[str, Any], base: BaseModel, data: Any, resolution: int, accelerator: Accelerator
) -> bool:
    """Whether the folder holds these encodings: the key is compared, and the last sample encoded again."""
    if not (folder / CACHE_FILE).is_file() or json.loads((folder / CACHE_FILE).read_text()) != key:
        return False
    encodings = Encodings(folder)
    last = Samples(data, resolution, None)[len(data) - 1]
    with accelerator.autocast():
        expected = base.encode_images(last["image"][None])[0].cpu(), base.encode_prompts([last["text"]])[0].cpu()
    found = encodings.sample(len(data) - 1)
    if all(torch.allclose(a, b, atol=0.05, rtol=0.05) for a, b in zip(found, expected)):
        accelerator.print(f"Reusing the encodings of {len(encodings)} samples in {folder}.")
        return True
    accelerator.print(f"The encodings in {folder} are not those of this base model and data: computing them again.")
    return False
