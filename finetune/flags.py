"""The command-line flags that all training programs have, under the names that diffusers' users know, and the plan of
the run that they describe. Needs no library, so that a program can read its flags before it imports any."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from typing import Any

from .argument_types import (
    MOST_HELD_OUT,
    file_path,
    name_or_path,
    natural_float,
    natural_int,
    or_none,
    picture_size,
    positive_float,
    positive_int,
    seed_int,
    share,
    split_share,
    switch,
)
from .presets import defaults_of, in_words, presets_of
from .run.notes import say_once

# Those of diffusers but two: one has steps of its own, and one restarts, once if not told otherwise, which is the plain
# cosine; there are no flags for either.
SCHEDULES = ["linear", "cosine", "polynomial", "constant", "constant_with_warmup"]
LAST_OF_POLYNOMIAL = 1e-7  # the learning rate that this schedule ends at, in diffusers


@dataclass(frozen=True)
class Plan:
    """How a model is optimised: what the flags of the same names say."""

    train_batch_size: int
    max_train_steps: int
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    max_grad_norm: float
    use_8bit_adam: bool
    compile: bool
    dataloader_num_workers: int
    checkpointing_steps: int
    checkpoints_total_limit: int | None
    seed: int
    validation_loss_steps: int = 0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Says each flag's default, and leaves the lines about presets as they are."""


def add_switch(parser: argparse.ArgumentParser, flag: str, help: str) -> None:
    """A flag that is off; typed alone it is on, and with `no` behind it off again, whatever a preset says."""
    parser.add_argument(flag, type=switch, nargs="?", const=True, default=False, metavar="{yes,no}", help=help)


def training_parser(program: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the flags of a training on one base model.

    Args:
        program: its file's name, by which its presets are known.
        defaults: the program's own where they differ.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=in_words(program),
        formatter_class=HelpFormatter,
        # --max would be --max_train_steps until there is another flag that begins so; and presets look for whole names.
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", choices=list(presets_of(program)), default=None, help="start from these flags, see below")
    add_switch(parser, "--dry_run", "print flags, parameters, steps, work and memory, and start nothing")
    add(
        "--pretrained_model_name_or_path",
        type=name_or_path,
        default="CompVis/stable-diffusion-v1-4",
        help="base: folder, file, hub name",
    )
    add("--output_dir", type=file_path, help="checkpoints, logs, pictures, results")
    add("--resolution", type=picture_size, default=512, help="side of the training images, px")
    add("--train_batch_size", type=positive_int, default=4, help="samples of a batch, for each process")
    add("--gradient_accumulation_steps", type=positive_int, default=1, help="batches whose gradients make one step")
    add("--max_train_steps", type=positive_int, default=1000, help="optimisation steps")
    add("--learning_rate", type=positive_float, default=1e-4)
    add("--lr_scheduler", choices=SCHEDULES, default="constant", help="diffusers' schedule")
    add("--lr_warmup_steps", type=natural_int, default=0)
    add("--max_grad_norm", type=positive_float, default=1.0)
    add("--proportion_empty_prompts", type=share, default=0.0, help="share of prompts replaced by the empty one")
    add("--snr_gamma", type=or_none(positive_float), default=None, help="weight timesteps by min-SNR; 5 is usual")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "auto"], default="no", help="auto: bf16 if fast")
    add_switch(parser, "--gradient_checkpointing", "less memory, a third slower")
    add_switch(parser, "--fit_memory", "as many samples at once as the GPU has memory for; a step keeps its samples")
    add_switch(parser, "--compile", "some minutes to start, then faster: for long runs")
    add_switch(parser, "--use_8bit_adam", "less memory; needs bitsandbytes")
    add_switch(parser, "--no_cache", "encode images and prompts at every step, not once")
    add("--dataloader_num_workers", type=natural_int, default=0)
    add("--checkpointing_steps", type=natural_int, default=500, help="save this often, and at the end (0: never)")
    # Two, as the newest may be of a run that has just begun to go wrong.
    add("--checkpoints_total_limit", type=positive_int, default=2, help="older checkpoints are removed")
    add("--resume_from_checkpoint", type=name_or_path, help="'latest' or a folder; goes on exactly where it was")
    add_switch(parser, "--push_to_hub", "the result, with its model card, to the Hugging Face hub")
    add("--hub_model_id", default=None, help="to this OWNER/NAME (default: you, and the name of --output_dir)")
    add(
        "--validation_split",
        type=or_none(split_share),
        default=None,
        help="hold out this share of the pictures: their "
        f"loss is measured ({MOST_HELD_OUT} pictures at most), and they are not trained on",
    )
    add("--validation_data_dir", type=or_none(name_or_path), help="or a folder of other pictures, laid out alike")
    add("--validation_loss_steps", type=natural_int, default=100, help="measure that loss this often (0: never)")
    add("--report_to", choices=["tensorboard", "wandb", "none"], default="tensorboard", help="where the curves go")
    add("--validation_guidance_scale", type=natural_float, default=7.5)
    add("--seed", type=seed_int, default=0)
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, beginning with a preset's, with the precision that "auto" stands for: on another machine it may be
    another training."""
    # A parser for one flag reads it first, as its preset's values have to be the others' defaults.
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    preset = presets_of(parser.prog).get(first.parse_known_args()[0].preset)
    if preset is not None:  # any other name is refused by the parser itself
        parser.set_defaults(**defaults_of(preset, sys.argv[0], sys.argv[1:]))
    args = parser.parse_args()
    falls = args.lr_warmup_steps < args.max_train_steps and args.learning_rate > LAST_OF_POLYNOMIAL
    if args.lr_scheduler == "polynomial" and not falls:
        parser.error(
            f"--lr_scheduler polynomial falls from --learning_rate to {LAST_OF_POLYNOMIAL:g} after --lr_warmup_steps: "
            "the rate must be higher, and the steps fewer than --max_train_steps"
        )
    if args.lr_scheduler == "constant" and args.lr_warmup_steps:
        say_once(
            f"--lr_scheduler constant has no warmup, and --lr_warmup_steps {args.lr_warmup_steps} counts for nothing: "
            "constant_with_warmup has one."
        )
    elif args.lr_warmup_steps >= args.max_train_steps:
        say_once(
            f"--lr_warmup_steps {args.lr_warmup_steps} are no fewer than --max_train_steps {args.max_train_steps}: the "
            "learning rate is never reached."
        )
    if args.hub_model_id is not None and not args.push_to_hub:
        parser.error("--hub_model_id says where --push_to_hub goes: give both, or neither")
    if args.validation_split is not None and args.validation_data_dir is not None:
        parser.error(
            "--validation_split takes from the data, --validation_data_dir is another folder: give one of them"
        )
    # Kept for the line that says why it is that; what the run is compared by is the precision itself.
    args.mixed_precision_asked = args.mixed_precision
    if args.mixed_precision == "auto":
        from .setup import precision_here  # asks PyTorch

        args.mixed_precision = precision_here(args.mixed_precision)
    if args.fit_memory:
        from .fit import fit

        fit(args, parser.prog, sys.argv[1:])
    return args


def plan_of(args: argparse.Namespace) -> Plan:
    """What of the flags the training loop needs to know."""
    return Plan(**of_same_names(Plan, args))


def of_same_names(plan: type, args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are called as fields of the plan, a dataclass, are."""
    return {field.name: getattr(args, field.name) for field in fields(plan) if hasattr(args, field.name)}
