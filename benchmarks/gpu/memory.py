"""The memory that a training step takes on a GPU, by batch size, precision and gradient checkpointing."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from models import build_models
from recipes import Recipe
from train_step import Step, held_bytes, peak_bytes, reset_peak, synchronize

GIB = 2**30


def peaks(task: str, precision: str, size: str, batch_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The peak of our own step for each batch size, without and with gradient checkpointing, in bytes.

    It is that of a step after the first, when the optimiser has its averages. `reserved` is what PyTorch took from the
    GPU for it; CUDA itself takes some hundred MiB more.
    """
    recipe = Recipe(own=True, precision=precision, checkpointing=False, eight_bit=False)
    step = Step(recipe, task, build_models(size), 1)
    rows = []
    for checkpointing in (False, True):
        step.set_checkpointing(checkpointing, step.trained)
        for batch_size in batch_sizes:
            step.prepare_data(batch_size)
            rows.append(
                {"task": task, "precision": precision, "batch_size": batch_size, "checkpointing": checkpointing}
            )
            rows[-1].update(one_peak(step))
    return rows


def one_peak(step: Step) -> dict[str, Any]:
    """Bytes of the second of two steps; an empty dict with `out_of_memory` where it does not fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        step()
        synchronize()
        held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        reset_peak()
        step()
        synchronize()
    except torch.cuda.OutOfMemoryError:
        step.optimizer.zero_grad()
        return {"out_of_memory": True}
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"peak": peak_bytes(), "reserved": reserved, "between_steps": held, **held_bytes(step)}


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each task, precision and batch size, with and without checkpointing side by side."""
    lines = [
        "| training | precision | batch | peak, GiB | with checkpointing | reserved, GiB | with checkpointing "
        "| weights + gradients + optimiser |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {(row["task"], row["precision"], row["batch_size"], row["checkpointing"]): row for row in rows}
    for task, precision, batch_size, checkpointing in found:
        if checkpointing:
            continue
        pair = [found.get((task, precision, batch_size, on), {}) for on in (False, True)]
        cells = [f"{row[key] / GIB:.2f}" if key in row else "–" for key in ("peak", "reserved") for row in pair]
        held = [pair[0].get(key, 0) / GIB for key in ("weights", "gradients", "optimizer")]
        parts = " + ".join(f"{value:.2f}" for value in held)
        lines.append(f"| {task} | {precision} | {batch_size} | {' | '.join(cells)} | {parts} |")
    return "\n".join(lines)
