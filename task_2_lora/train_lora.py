"""Trains a LoRA: a small file that teaches Stable Diffusion a style, from pictures with captions.

On Stable Diffusion 1.4 and one GPU, `--preset style-sd`, as the scripts do. On a laptop, in minutes:

    python train_lora.py --preset style-tiny

LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune.argument_types import name_or_path, natural_float, or_none, positive_int
from lora.flags import lora_parser, parse_lora


def parse_args() -> argparse.Namespace:
    parser = lora_parser("train_lora.py", __doc__.splitlines()[0], validation_epochs=1, output_dir=Path("../runs/lora"))
    add = parser.add_argument
    add("--dataset_name", default=None, help="pictures with captions: data set of the hub")
    add("--train_data_dir", type=name_or_path, default=None, help="or a folder or zip of pictures with captions")
    add("--image_column", default="image", help="the data's column of images")
    add("--caption_column", default="text", help="the data's column of captions")
    add("--max_train_samples", type=or_none(positive_int), default=None, help="use the first so many samples only")
    add("--noise_offset", type=natural_float, default=0.0, help="for very dark or bright styles; 0.05 to 0.1 is usual")
    return parse_lora(parser)


if __name__ == "__main__":
    parse_args()  # says --help, and what is wrong with the flags, before PyTorch is imported, which takes seconds

from finetune.data.cache import held_out_from
from finetune.model.single_file import as_folder
from finetune.model.upload import prepare_upload
from finetune.run.folder import Run
from finetune.setup import fail_clearly, require_hardware, start_accelerator
from lora.training import LoraTraining, dry_run, end_if_finished, lora_plan_of
from pictures import CaptionedImages, Variants


def main() -> None:
    args = parse_args()
    if args.dry_run and args.train_data_dir is None:
        return dry_run(args, None)
    if not args.dry_run:
        require_hardware(args.pretrained_model_name_or_path)
        args.pretrained_model_name_or_path = as_folder(args.pretrained_model_name_or_path)
    captioned = CaptionedImages(
        args.dataset_name, args.train_data_dir, args.image_column, args.caption_column, args.max_train_samples
    )
    columns = (args.image_column, args.caption_column)
    captioned, held_out = held_out_from(args, captioned, lambda folder: CaptionedImages(None, folder, *columns))
    # Held-out pictures are split off before: a mirror image of one must not be trained on.
    data = Variants(captioned, args.random_flip, args.random_crop)
    if args.dry_run:
        return dry_run(args, len(data))
    run = Run(args)
    run.add_data(args.train_data_dir or args.dataset_name, captioned)
    run.check()
    upload = prepare_upload(args)
    end_if_finished(run, args.also_save, upload)
    accelerator = start_accelerator(args, "lora")

    training = LoraTraining(accelerator, lora_plan_of(args), run, data, held_out)
    training.run(
        lambda batch: training.loss([batch], noise_offset=args.noise_offset), args.resume_from_checkpoint, upload
    )


if __name__ == "__main__":
    with fail_clearly():
        main()
