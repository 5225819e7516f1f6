"""Latents and text embeddings, computed once and kept on disk: nothing that stays the same is computed twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Subset

from ..model.base import BaseModel
from ..objective import Part, split_off
from ..run.checkpoints import CheckpointError, finish_folder, write_file
from ..run.progress import progress_bar
from .images import square, to_tensor

CACHE_FILE = "cache.json"
PROMPTS_FILE = "prompts.json"
# So many pixels are encoded at once: 64 pictures of 64 px, one of 512 px. More take more memory, and on a CPU, whose
# caches they outgrow, more time (16 pictures of 512 px at once: half as much again as one by one).
PIXELS_AT_ONCE = 2**18
# Encodings are flushed to the disk after so many samples: what a killed run loses at most.
SAVE_EVERY = 1024


class Encodings:
    """Memory-mapped latents of every image and embeddings of every prompt; equal prompts are stored once."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        # Mapped, not read: 50,000 samples of Stable Diffusion's are 3.5 GiB, and a process holds 0.7 beside the pages
        # that it has read. 32 KiB a picture, (4, 64, 64) in float16; 116 KiB a prompt, (77, 768).
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")  # (N, 4, h, w)
        self.embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")  # (P, T, D), P prompts
        self.prompt_of_sample = np.load(folder / "prompt_of_sample.npy", mmap_mode="r")  # (N,), in 0..P-1
        self.prompts: list[str] = json.loads((folder / PROMPTS_FILE).read_text())

    def __reduce__(self) -> tuple[Any, ...]:
        """Where workers are not forked, they map the files themselves: pickled arrays would be whole copies."""
        return Encodings, (self.folder,)

    def __len__(self) -> int:
        return len(self.latents)

    def text(self, index: int) -> str:
        return self.prompts[self.prompt_of_sample[index]]

    def sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (4, height / 8, width / 8) and text embeddings (tokens, cross_attention_dim), float32."""
        latents, embedding = self.latents[index], self.embeddings[self.prompt_of_sample[index]]
        # A copy in float32: a tensor on the file's own pages could not be written to.
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
            # -1..1 is what the autoencoder was trained on.
            return {"image": to_tensor(square(sample["image"], self.resolution)) * 2 - 1, "text": sample["text"]}
        latents, text_embeddings = self.encodings.sample(index)
        return {"latents": latents, "text_embeddings": text_embeddings, "text": self.encodings.text(index)}


def held_out_from(args: Any, data: Any, load: Callable[[str], Any], part_class: type = Part) -> tuple[Any, Any]:
    """What is trained on of `data`, and what the flags hold out: a share of them, a folder that `load` opens, or None.

    Raises ValueError if nothing would be left, or if the folder holds a picture that is trained on.
    """
    if args.validation_split is not None:
        return split_off(data, args.validation_split, part_class)
    if args.validation_data_dir is None:
        return data, None
    held_out = load(args.validation_data_dir)
    # By picture: a part of them, or the same with another caption, is trained on, too.
    trained_on = set(data.contents())
    shared = sum(content in trained_on for content in held_out.contents())
    if shared:
        raise ValueError(
            f"--validation_data_dir {args.validation_data_dir} holds what is trained on: {shared} of its "
            f"{len(held_out)} samples, which are not held out."
        )
    return data, held_out


class _Rows:
    """An array on disk whose rows are written from the first to the last; a killed run goes on where it was saved."""

    def __init__(self, folder: Path, name: str, length: int, dtype: str) -> None:
        self.file, self.progress = folder / f"{name}.npy", folder / f"{name}.done"
        self.length, self.dtype = length, dtype
        # How far the file is good stands in another one, which is written after it was flushed: a power cut leaves no
        # row that is counted and not there.
        self.done = self.saved = int(self.progress.read_text()) if self.progress.is_file() else 0
        self.stream: BinaryIO | None = None

    def append(self, rows: np.ndarray) -> None:
        rows = rows.astype(self.dtype)
        if self.stream is None:
            self.stream = self.open(rows)
        self.stream.write(rows.tobytes())
        self.done += len(rows)
        if self.done - self.saved >= SAVE_EVERY or self.done == self.length:
            self.save()

    def open(self, rows: np.ndarray) -> BinaryIO:
        """The file for writing, behind its last row that was saved. Not as a memory map: a full disk would kill it."""
        # NumPy's own format with the final length from the start: a finished file needs no second writing.
        header = io.BytesIO()
        fields = {"descr": rows.dtype.str, "fortran_order": False, "shape": (self.length, *rows.shape[1:])}
        np.lib.format.write_array_header_1_0(header, fields)
        stream = self.file.open("r+b" if self.done else "wb")
        stream.write(header.getvalue())
        stream.seek(len(header.getvalue()) + self.done * rows[0].nbytes)
        # What a killed run wrote behind its last mark may be half a row.
        stream.truncate()
        return stream

    def save(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        write_file(self.progress, str(self.done))
        self.saved = self.done
        if self.done == self.length:
            self.stream.close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Cannot write the encodings in {folder}: {error}\nIs the disk full? Free space and start again: it "
            f"goes on where it stopped."
        ) from error


def load_encodings(
    base: BaseModel, data: Any, resolution: int, cache_dir: Path, accelerator: Accelerator, num_workers: int = 0
) -> Encodings:
    """The data's encodings by this base model at this resolution: from `cache_dir` if they are there, else computed.

    What a killed run has computed is not lost: the next one goes on from there.

    Args:
        data: `len`, items with `image` (PIL) and `text`, and a string `fingerprint`.

    Prompts that are longer than the text encoder's length are told of while they are encoded.

    Raises:
        CheckpointError: if the cache cannot be written.
    """
    # Half precision is stored only where it is computed: in float32, cached and uncached training are the same.
    dtype = "float32" if accelerator.mixed_precision == "no" else "float16"
    key = {
        "format": 3,  # of the files here, and of what `finetune.data.images` makes of pictures
        "base": base.fingerprint(),
        "data": data.fingerprint,
        "samples": len(data),
        "resolution": resolution,
        "dtype": dtype,
    }
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    # One process encodes, the others find it done when they get here.
    with accelerator.main_process_first():
        if not _is_valid(folder, key, base, data, resolution, accelerator):
            # Named by the key: only a run that wants the same encodings goes on with it.
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            unfinished.mkdir(parents=True, exist_ok=True)
            _encode_images(unfinished, key, base, data, num_workers, accelerator)
            _encode_prompts(unfinished, key, base, accelerator)
            with _writing(unfinished):
                (unfinished / CACHE_FILE).write_text(json.dumps(key, indent=2) + "\n")
                finish_folder(unfinished, folder)
    return Encodings(folder)


def _encode_images(
    folder: Path, key: dict[str, Any], base: BaseModel, data: Any, num_workers: int, accelerator: Accelerator
) -> None:
    """Writes latents.npy, and texts.jsonl with each sample's prompt."""
    latents = _Rows(folder, "latents", key["samples"], key["dtype"])
    texts_file = folder / "texts.jsonl"
    texts_file.touch()
    with texts_file.open("rb") as lines:
        # Texts are written before their latents: there may be more of them, and those are cut off.
        kept = sum(len(line) for line, _ in zip(lines, range(latents.done)))
    os.truncate(texts_file, kept)
    rest = Subset(Samples(data, key["resolution"], None), range(latents.done, key["samples"]))
    progress = progress_bar(
        total=key["samples"],
        initial=latents.done,
        desc="Encoding images once",
        disable=not accelerator.is_local_main_process,
    )
    with texts_file.open("a") as lines:
        batch_size = max(1, PIXELS_AT_ONCE // key["resolution"] ** 2)
        # 64 pictures of 64 px: 1,017 a second, not 747 as by sixteens; one of 512 px: 15.4, not 9.4 (EPYC, 2026-11-26).
        for samples in DataLoader(rest, batch_size=batch_size, num_workers=num_workers):
            with accelerator.autocast():
                batch = base.encode_images(samples["image"]).cpu().numpy()  # (n, 3, H, W) to (n, 4, h, w)
            with _writing(folder):
                lines.writelines(json.dumps(text) + "\n" for text in samples["text"])
                lines.flush()  # before the latents: a row that is saved has its text
                latents.append(batch)
            progress.update(len(batch))
    progress.close()


def _encode_prompts(folder: Path, key: dict[str, Any], base: BaseModel, accelerator: Accelerator) -> None:
    """Writes prompts.json, each prompt once, embeddings.npy, and prompt_of_sample.npy."""
    numbers: dict[str, int] = {}
    with (folder / "texts.jsonl").open() as lines:
        # A DreamBooth's pictures share one prompt, and Fill50K's pairs of colours come again: each is encoded once.
        prompt_of_sample = [numbers.setdefault(json.loads(line), len(numbers)) for line in lines]
    prompts = list(numbers)
    np.save(folder / "prompt_of_sample.npy", np.array(prompt_of_sample, np.int64))
    (folder / PROMPTS_FILE).write_text(json.dumps(prompts))

    base.tell_of_cut(prompts, accelerator.print)
    embeddings = _Rows(folder, "embeddings", len(prompts), key["dtype"])
    for start in progress_bar(range(embeddings.done, len(prompts), 64), desc="Encoding prompts once", leave=False):
        with accelerator.autocast():
            batch = base.encode_prompts(prompts[start : start + 64]).cpu().numpy()  # (n, T, D)
        with _writing(folder):
            embeddings.append(batch)
    # The texts last: whoever is killed in between finds no latents that are done, and begins again.
    for helper in ("latents.done", "embeddings.done", "texts.jsonl"):
        (folder / helper).unlink()


def _is_valid(
    folder: Path, key: dict[str, Any], base: BaseModel, data: Any, resolution: int, accelerator: Accelerator
) -> bool:
    """Whether the folder holds these encodings: the key is compared, and the last sample encoded again."""
    if not (folder / CACHE_FILE).is_file() or json.loads((folder / CACHE_FILE).read_text()) != key:
        return False
    encodings = Encodings(folder)
    # The key speaks for weights and data; one sample, encoded again, speaks for the files.
    last = Samples(data, resolution, None)[len(data) - 1]
    with accelerator.autocast():
        expected = base.encode_images(last["image"][None])[0].cpu(), base.encode_prompts([last["text"]])[0].cpu()
    found = encodings.sample(len(data) - 1)
    # float16 and other batch sizes round differently; other weights or pictures differ by more than this.
    if all(torch.allclose(a, b, atol=0.05, rtol=0.05) for a, b in zip(found, expected)):
        accelerator.print(f"Reusing the encodings of {len(encodings)} samples in {folder}.")
        return True
    accelerator.print(f"The encodings in {folder} are not those of this base model and data: computing them again.")
    return False
