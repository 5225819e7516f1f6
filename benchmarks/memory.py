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
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_step
from finetune.dtypes import cast
from finetune.numbers import positive_int
from models import build_models
from recipes import OURS
from train_step import Step

GIB = 2**30
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("weights", "gradients", "optimizer", "rest")
# bitsandbytes keeps each average as bytes with a float32 for every 256; averages of fewer than 4096 numbers whole.
BLOCK, SMALL = 256, 4096


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of all storages that were made within it and are alive, by kind, and keeps their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[weakref.ref, int, str]] = {}
        self.live = dict.fromkeys(KINDS, 0)
        self.peak = dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.label(tensor, None)
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)
        return result

    def label(self, tensor: torch.Tensor, kind: str | None) -> None:
        """Counts a tensor's storage as `kind` from now on; None: a new one as `rest`, a known one as before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        _, size, before = self.known.get(key, (None, storage.nbytes(), None))
        if before is not None and kind in (None, before):
            return
        if before is not None:
            self.live[before] -= size
        kind = kind or "rest"
        self.live[kind] += size
        self.known[key] = (weakref.ref(storage, partial(self.forget, key)), size, kind)

    def forget(self, key: int, reference: weakref.ref) -> None:
        if key in self.known and self.known[key][0] is reference:
            _, size, kind = self.known.pop(key)
            self.live[kind] -= size

    def restart(self) -> None:
        self.peak = dict(self.live)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Fused attention; and norms in float32, as autocast computes them there. On a CPU it leaves them in half."""

    def in_float32(norm: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            args = [a.float() if isinstance(a, torch.Tensor) and a.dtype in HALF.values() else a for a in args]
        return norm(*args, **kwargs)

    # Not by a TorchFunctionMode: what checkpointing computes again in the backward pass would not see it.
    with patch.object(F, "group_norm", partial(in_float32, F.group_norm)):
        with patch.object(F, "layer_norm", partial(in_float32, F.layer_norm)):
            with patch.object(train_step, "use_fast_attention", lambda model, device: None):
                yield


class SimulatedStep(Step):
    """A step on a CPU whose frozen weights have the type that they have on a GPU."""

    def build(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        unet, trained = super().build()
        half = HALF.get(self.accelerator.mixed_precision)
        trainable = {name: p.data for name, p in unet.named_parameters() if p.requires_grad}
        if half is not None:
            cast(unet, half)
        for name, parameter in unet.named_parameters():
            if name in trainable:
                parameter.requires_grad_(True).data = trainable[name]
        return unet, trained


def convert(module: torch.nn.Module, function: Callable, recurse: bool = True) -> torch.nn.Module:
    """In place of PyTorch's `Module._apply`, which exchanges the contents of tensors: these have none."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            with torch.no_grad():
                converted = parameter if parameter is None else function(parameter)
            if converted is not parameter:
                part._parameters[name] = torch.nn.Parameter(converted, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer if buffer is None else function(buffer)
    return module


@contextmanager
def simulation() -> Iterator[None]:
    """Within it tensors have no contents, and modules of such tensors may be cast."""
    # On a CPU's fake tensors also where there is a GPU: the backward pass of a GPU's would start CUDA.
    with patch.object(torch.cuda, "is_available", lambda: False), patch.object(torch.nn.Module, "_apply", convert):
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def step_peaks(make_step: Callable[[], Step], batch_size: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind before the second step, when the optimiser has its averages, and at its peak."""
    with LiveStorages() as live:
        step = make_step()
        step.prepare_data(batch_size)
        for model in (step.unet, step.trained):
            for parameter in model.parameters():
                live.label(parameter, "weights")
        for parameter in step.parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: live.label(p.grad, "gradients"))
        step()
        for tensor in tree_leaves(list(step.optimizer.state.values())):
            if isinstance(tensor, torch.Tensor):
                live.label(tensor, "optimizer")
        before = dict(live.live)
        live.restart()
        step()
        return before, live.peak


def eight_bit_bytes(sizes: list[int]) -> int:
    """Of 8-bit Adam's averages for parameters of so many numbers."""
    small = sum(size for size in sizes if size < SMALL)
    large = [size for size in sizes if size >= SMALL]
    return 2 * (4 * small + sum(size + 4 * -(-size // BLOCK) for size in large))


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
        return step

    with simulation(), as_on_cuda() if like_cuda else nullcontext():
        before, peak = step_peaks(make_step, batch_size)
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
