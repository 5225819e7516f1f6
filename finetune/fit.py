"""The same step in other pieces: batch size, accumulation and checkpointing by the memory of the GPU.

For Stable Diffusion 1.x at 512 px in half precision. Which samples make a step is the training's, in how many batches
they go through the GPU this file's. Noise is drawn batch by batch: cut otherwise, the same samples get other noise.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Iterator, NamedTuple, Sequence

from .run.notes import say_once
from .run.processes import is_main_process

GIB = 2**30
# GiB at the peak of a step, by samples of a batch: (without, with gradient checkpointing). Measured on an H200 by
# benchmarks/gpu_rows.py; a ControlNet's batch of 16 simulated by benchmarks/memory.py, within 5 % of the others.
PEAKS = {
    "controlnet": {1: (7.6, 7.3), 2: (8.8, 7.5), 4: (11.2, 7.9), 8: (15.9, 9.0), 16: (25.2, 11.5)},
    "lora": {1: (2.8, 2.0), 2: (3.9, 2.2), 4: (6.1, 2.7), 8: (10.4, 3.8), 16: (19.1, 5.8)},
}
# PyTorch reserved at most 1.1 GiB more than its tensors took; the rest is for CUDA itself and a screen.
BESIDE = 1.6
EIGHT_BIT = {"controlnet": 2.0, "lora": 0.0}  # what 8-bit Adam takes less, by benchmarks/memory.py
CUT = ("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")


class Cut(NamedTuple):
    """How a step is cut, and the GiB that it needs."""

    batch_size: int
    accumulation: int
    checkpointing: bool
    needed: float


def cuts(kind: str, samples: int, eight_bit: bool, samples_of_one: int) -> Iterator[Cut]:
    """All ways to make a step of so many samples, the fastest first.

    Args:
        kind: of `PEAKS`.
        samples_of_one: how many go through the UNet for one of the batch; a DreamBooth's picture of the class is one.
    """
    # Checkpointing computes the forward pass twice, a third more work. That a small batch costs less is a guess.
    for checkpointing in (False, True):
        for size in sorted(PEAKS[kind], reverse=True):
            batch, rest = divmod(size, samples_of_one)
            if not rest and samples % batch == 0:
                peak = PEAKS[kind][size][checkpointing] - (EIGHT_BIT[kind] if eight_bit else 0.0)
                yield Cut(batch, samples // batch, checkpointing, peak + BESIDE)


def fastest(kind: str, samples: int, gib: float, eight_bit: bool = False, samples_of_one: int = 1) -> Cut:
    """The first of the `cuts` that fits into so many GiB; the smallest where none does."""
    ways = list(cuts(kind, samples, eight_bit, samples_of_one))
    return next((way for way in ways if way.needed <= gib), min(ways, key=lambda way: way.needed))


def is_known(args: argparse.Namespace, typed: Sequence[str]) -> bool:
    """Whether the flags are those of the table, and none was typed that says how the step is to be cut."""
    names = {word.split("=")[0].lstrip("-") for word in typed if word.startswith("--")}
    # What else is trained takes memory that was not measured. Rank 64 of attention takes 0.2 GiB more than rank 4.
    everywhere = getattr(args, "train_text_encoder", False) or getattr(args, "lora_layers", None) == "all"
    more = everywhere or getattr(args, "rank", 0) > 64
    return args.resolution == 512 and args.mixed_precision != "no" and not more and names.isdisjoint(CUT)


def fit(args: argparse.Namespace, program: str, typed: Sequence[str]) -> None:
    """Sets the flags of `CUT` as this machine's GPU has memory, and says so; without a known GPU they stay."""
    from .devices import memory_bytes, pick_device  # asks PyTorch

    memory = memory_bytes(pick_device())
    if memory is None or not is_known(args, typed):
        return
    kind = "controlnet" if program == "train.py" else "lora"
    samples_of_one = 2 if getattr(args, "with_prior_preservation", False) else 1
    samples = args.train_batch_size * args.gradient_accumulation_steps
    way = fastest(kind, samples, memory / GIB, args.use_8bit_adam, samples_of_one)
    args.train_batch_size, args.gradient_accumulation_steps, args.gradient_checkpointing, _ = way
    if is_main_process():
        say_once(in_words(way, memory / GIB, kind == "controlnet" and not args.use_8bit_adam))


def in_words(way: Cut, gib: float, could_shrink: bool) -> str:
    batches = "1 batch" if way.accumulation == 1 else f"{way.accumulation} batches"
    words = (
        f"this GPU has {gib:.1f} GiB. A step is {batches} of {way.batch_size}, gradient checkpointing "
        f"{'on' if way.checkpointing else 'off'}, for which {way.needed:.1f} GiB are enough."
    )
    if way.needed <= gib:
        return f"{words} Typed flags (--train_batch_size, ...) are taken as they are."
    missing = could_shrink and importlib.util.find_spec("bitsandbytes") is None
    return f"{words} It may not fit{': pip install bitsandbytes, and --use_8bit_adam' if missing else ''}."
