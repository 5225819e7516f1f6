"""Measures how long a training stands still for a checkpoint, and how long that takes to be whole on the disk.

    python benchmarks/checkpoint.py                             # the embedded base's size
    python benchmarks/checkpoint.py --size sd14                 # Stable Diffusion 1.4's: 6 GB of memory, 13 GB of disk

A checkpoint is the ControlNet and the two averages of AdamW, all in float32, as train.py writes it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from models import ROOT, TINY_SD, device_name

sys.path.insert(0, str(ROOT / "task_1_controlnet"))

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.argument_types import positive_int
from finetune.flags import Plan
from finetune.training_loop import Training
from train import save_controlnet


def build_training(size: str, folder: Path) -> Training:
    """A training of a fresh ControlNet after its first step, whose gradients were zero: what is stored is as large."""
    if size == "tiny_sd":
        controlnet = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(TINY_SD, subfolder="unet"))
    else:
        controlnet = ControlNetModel(cross_attention_dim=768, attention_head_dim=8)
    plan = Plan(
        train_batch_size=1, max_train_steps=3, learning_rate=1e-5, lr_scheduler="constant", lr_warmup_steps=0,
        max_grad_norm=1.0, use_8bit_adam=False, compile=False, dataloader_num_workers=0, checkpointing_steps=1,
        checkpoints_total_limit=2, seed=0,
    )  # fmt: skip
    training = Training(
        Accelerator(), controlnet, plan, [torch.zeros(1)], save_controlnet, lambda model, folder: None,
        folder, "controlnet", {},
    )  # fmt: skip
    for parameter in controlnet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    training.optimizer.zero_grad()
    return training


def measure(size: str, folder: Path, repeats: int) -> list[tuple[float, float]]:
    """For each checkpoint the seconds until the training may go on, and until the checkpoint is whole on the disk."""
    training = build_training(size, folder)
    seconds = []
    for training.step in range(1, repeats + 1):
        start = time.perf_counter()
        training.save_checkpoint()
        waited = time.perf_counter() - start
        training.finish_checkpoint()
        seconds.append((waited, time.perf_counter() - start))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny_sd", "sd14"], default="tiny_sd")
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument("--output_dir", type=Path, default=None, help="a folder on the disk to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.output_dir) as folder:
        for waited, whole in measure(args.size, Path(folder), args.repeats):
            print(f"{args.size} on {device_name()}: the training waits {waited:.2f} s, on the disk after {whole:.2f} s")
        newest = max(Path(folder).glob("checkpoint-*"))
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    print(f"{size / 2**20:.0f} MiB a checkpoint")


if __name__ == "__main__":
    main()
