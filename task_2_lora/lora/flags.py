"""The flags that both LoRA trainings have. Needs no library, as `finetune.flags`."""

from __future__ import annotations

import argparse
from typing import Any

from finetune.argument_types import natural_int, or_none, positive_float, positive_int
from finetune.flags import add_switch, parse, training_parser

LAYERS = ["attention", "all"]  # the names in `lora.UNET_TARGETS`


def lora_parser(program: str, description: str, validation_epochs: int, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that both trainings have; `validation_epochs` and `defaults` are the program's own defaults."""
    parser = training_parser(program, description, **defaults)
    add = parser.add_argument
    add_switch(parser, "--random_flip", "train on the mirror images too")
    add_switch(parser, "--random_crop", "train on random squares of the images, not on the centre")
    # In a language model ranks of 1 to 4 did about as well as 64 (Hu et al., section 7.2).
    add("--rank", type=positive_int, default=4, help="the LoRA's rank: its size and capacity")
    add("--alpha", type=or_none(positive_float), default=None, help="the LoRA counts alpha / rank (default: the rank)")
    add(
        "--lora_layers",
        choices=LAYERS,
        default="attention",
        help="of the UNet; all: feed-forward and convolutions too, which small bases want",
    )
    add_switch(parser, "--train_text_encoder", "a LoRA on the text encoder too")
    add("--also_save", choices=["kohya"], default=None, help="the layout that ComfyUI and AUTOMATIC1111 read")
    add(
        "--validation_prompt",
        type=or_none(str),
        default=None,
        help="draw this during training, into output_dir/validation",
    )
    add("--num_validation_images", type=positive_int, default=4)
    add("--validation_epochs", type=natural_int, default=validation_epochs, help="draw after so many epochs (0: never)")
    return parser


def parse_lora(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parse(parser)
    # Here and not when it is used: `run.json` and the files say the number that counts.
    args.alpha = float(args.rank) if args.alpha is None else args.alpha
    return args
