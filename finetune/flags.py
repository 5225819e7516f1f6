"""The command-line flags that all training programs have, under the names that diffusers' users know, and the plan of
the run that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffusers.optimization import SchedulerType

from .numbers import natural_float, natural_int, picture_size, positive_float, positive_int, seed_int, share
from .setup import precision_here
from .training import Plan

# One of them has steps of its own, for which there is no flag.
SCHEDULES = [kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT]
LAST_OF_POLYNOMIAL = 1e-7  # the learning rate that this schedule ends at, in diffusers


def training_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the flags of a training on one base model; `defaults` are the program's own where they differ."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="CompVis/stable-diffusion-v1-4", help="base: folder, file, hub name")
    add("--output_dir", type=Path, required="output_dir" not in defaults, help="checkpoints, logs, pictures, results")
    add("--resolution", type=picture_size, default=512, help="side of the training images, px")
    add("--train_batch_size", type=positive_int, default=4, help="samples a step, for each process")
    add("--gradient_accumulation_steps", type=positive_int, default=1, help="batches whose gradients make one step")
    add("--max_train_steps", type=positive_int, default=1000, help="optimisation steps")
    add("--learning_rate", type=positive_float, default=1e-4)
    add("--lr_scheduler", choices=SCHEDULES, default="constant", help="diffusers' schedule")
    add("--lr_warmup_steps", type=natural_int, default=0)
    add("--max_grad_norm", type=positive_float, default=1.0)
    add("--proportion_empty_prompts", type=share, default=0.0, help="share of prompts replaced by the empty one")
    add("--snr_gamma", type=positive_float, default=None, help="weight timesteps by min-SNR; 5 is usual")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "auto"], default="no", help="auto: bf16 if fast")
    add("--gradient_checkpointing", action="store_true", help="less memory, a third slower")
    add("--compile", action="store_true", help="some minutes to start, then faster: for long runs")
    add("--use_8bit_adam", action="store_true", help="less memory; needs bitsandbytes")
    add("--no_cache", action="store_true", help="encode images and prompts at every step, not once")
    add("--dataloader_num_workers", type=natural_int, default=0)
    add("--checkpointing_steps", type=natural_int, default=500, help="save this often, and at the end (0: never)")
    add("--checkpoints_total_limit", type=positive_int, default=2, help="older checkpoints are removed")
    add("--resume_from_checkpoint", default=None, help="'latest' or a folder; goes on exactly where it was")
    add("--push_to_hub", action="store_true", help="the result, with its model card, to the Hugging Face hub")
    add("--hub_model_id", default=None, help="to this OWNER/NAME (default: you, and the name of --output_dir)")
    add("--validation_guidance_scale", type=natural_float, default=7.5)
    add("--seed", type=seed_int, default=0)
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, with the precision that "auto" stands for: on another machine it may be another training."""
    args = parser.parse_args()
    falls = args.lr_warmup_steps < args.max_train_steps and args.learning_rate > LAST_OF_POLYNOMIAL
    if args.lr_scheduler == SchedulerType.POLYNOMIAL.value and not falls:
        parser.error(
            f"--lr_scheduler polynomial falls from --learning_rate to {LAST_OF_POLYNOMIAL:g} after --lr_warmup_steps: "
            "the rate must be higher, and the steps fewer than --max_train_steps"
        )
    if args.hub_model_id is not None and not args.push_to_hub:
        parser.error("--hub_model_id says where --push_to_hub goes: give both, or neither")
    args.mixed_precision = precision_here(args.mixed_precision)
    return args


def plan_of(args: argparse.Namespace) -> Plan:
    """What of the flags the training loop needs to know."""
    return Plan(
        train_batch_size=args.train_batch_size,
        max_train_steps=args.max_train_steps,
        learning_rate=args.learning_rate,
        lr_scheduler=args.lr_scheduler,
        lr_warmup_steps=args.lr_warmup_steps,
        max_grad_norm=args.max_grad_norm,
        use_8bit_adam=args.use_8bit_adam,
        compile=args.compile,
        dataloader_num_workers=args.dataloader_num_workers,
        checkpointing_steps=args.checkpointing_steps,
        checkpoints_total_limit=args.checkpoints_total_limit,
        seed=args.seed,
    )
