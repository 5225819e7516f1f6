"""Simulates the memory of a training step on a GPU, without a GPU and without the memory.

    python benchmarks/memory.py                                     # Stable Diffusion 1.4's size at 512 px, all rows
    python benchmarks/memory.py --tasks lora --batch_sizes 1 --precisions no bf16

A step of our trainings runs on tensors that have a shape and a type but no contents (PyTorch's FakeTensorMode), and
what is alive is added up at every operation. Not in it: CUDA's own memory (some hundred MiB), the workspace of kernels,
and what is lost between blocks. `gpu_rows.py` measures the same on a GPU.

DreamBooth with prior preservation takes what a LoRA takes at twice the batch.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import train_step
from finetune.argument_types import positive_int
from finetune.estimate import HALF, KINDS, as_on_cuda, cast_frozen, eight_bit_bytes, simulation, step_peaks
from models import build_models
from recipes import OURS
from train_step import Step

GIB = 2**30


class SimulatedStep(Step):
    """A step on a CPU whose frozen weights have the type that they have on a GPU, with the attention of one."""

    def build(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        with patch.object(train_step, "use_fast_attention", lambda model, device: None):
            unet, trained = super().build()
        half = HALF.get(self.accelerator.mixed_precision)
        if half is not None:
            cast_frozen(unet, half)
        return unet, trained


def simulate(
    task: str, size: str, batch_size: int, precision: str, checkpointing: bool, like_cuda: bool = True
) -> dict[str, Any]:
    """Bytes by kind at the peak of our step, their sum `peak`, the sum `before` it, and `peak_8bit` with 8-bit Adam.

    Without `like_cuda` it is what the step takes on a CPU, where frozen weights stay float32.
    """
    recipe = replace(OURS, precision=precision, checkpointing=checkpointing)
    sizes: list[int] = []

    def make_step() -> Step:
        step = (SimulatedStep if like_cuda else Step)(recipe, task, build_models(size, random_weights=True), 1)
        sizes.extend(parameter.numel() for parameter in step.parameters)
        step.prepare_data(batch_size)
        step.networks = (step.unet, step.trained)
        return step

    with simulation(), as_on_cuda() if like_cuda else nullcontext():
        before, peak = step_peaks(make_step)
    total = sum(peak.values())
    return {
        "task": task,
        "batch_size": batch_size,
        "precision": precision,
        "checkpointing": checkpointing,
        **peak,
        "peak": total,
        "before": sum(before.values()),
        "peak_8bit": total - peak["optimizer"] + eight_bit_bytes(sizes),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| training | precision | batch | checkpointing | simulated peak, GiB | with 8-bit Adam "
        "| weights + gradients + optimiser + rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = " + ".join(f"{row[kind] / GIB:.2f}" for kind in KINDS)
        cells = [row["task"], row["precision"], row["batch_size"], "on" if row["checkpointing"] else "off"]
        peaks = [f"{row[key] / GIB:.2f}" for key in ("peak", "peak_8bit")]
        lines.append(f"| {' | '.join(map(str, [*cells, *peaks]))} | {parts} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", nargs="+", choices=["controlnet", "lora"], default=["controlnet", "lora"])
    add("--size", choices=["tiny_sd", "sd14"], default="sd14")
    add("--batch_sizes", type=positive_int, nargs="+", default=[1, 2, 4, 8])
    add("--precisions", nargs="+", choices=["no", "bf16"], default=["bf16"], help="fp16 takes what bf16 takes")
    add("--output", type=Path, default=None, help="write the figures to this JSON file too")
    args = parser.parse_args()
    rows = []
    for task in args.tasks:
        for precision in args.precisions:
            for checkpointing in (False, True):
                for batch_size in args.batch_sizes:
                    rows.append(simulate(task, args.size, batch_size, precision, checkpointing))
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{args.size}, simulated; CUDA's own memory, workspace and fragmentation not in it\n\n{table(rows)}")
    if args.output:
        args.output.write_text(json.dumps({"size": args.size, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
