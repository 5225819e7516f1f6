"""Trains a DreamBooth LoRA: a small file that teaches Stable Diffusion one subject, from a few pictures of it.

The subject is called by an indicator, a word without a meaning, as in "a sks cat". So that the class, "cat", does not
turn into it, pictures of the class that the base itself draws are trained on too (prior preservation). On Stable
Diffusion 1.4 and one GPU, `--preset dreambooth-sd`, as the script does. On a laptop, in minutes:

    python train_dreambooth_lora.py --preset dreambooth-tiny

DreamBooth: Ruiz et al., 2022, https://arxiv.org/abs/2208.12242.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from finetune.argument_types import file_path, name_or_path, natural_float, positive_int
from finetune.flags import add_switch
from finetune.run.notes import say_once
from lora.flags import lora_parser, parse_lora


def parse_args() -> argparse.Namespace:
    parser = lora_parser(
        "train_dreambooth_lora.py",
        __doc__.splitlines()[0],
        validation_epochs=50,
        output_dir=Path("../runs/dreambooth"),
    )
    add = parser.add_argument
    add("--instance_data_dir", type=name_or_path, help="folder with the pictures of the subject")
    add(
        "--instance_prompt",
        help="what they show, with the indicator: 'a photo of a sks cat'; captions in "
        "their folder (a metadata.jsonl) may say more of each: 'a photo of a sks cat in snow'",
    )
    add_switch(parser, "--with_prior_preservation", "keep what the class looks like")
    add("--class_data_dir", type=file_path, default=None, help="pictures of the class; too few? The base draws more")
    add("--class_prompt", default=None, help="what they show: 'a photo of a cat'")
    add("--num_class_images", type=positive_int, default=100)
    # Lambda in eq. 2 of Ruiz et al., 1 there, too.
    add("--prior_loss_weight", type=natural_float, default=1.0, help="how much the class counts beside the subject")
    # "base" as sd-scripts' differential output preservation does (its pull request 1710).
    add(
        "--prior_target",
        choices=["noise", "base"],
        default="noise",
        help="what is learnt of the class: the noise in its pictures, as in the paper, or what the base predicts of "
        "them, which keeps the class better for a seventh more work",
    )
    args = parse_lora(parser)
    missing = [f"--{name}" for name in ("instance_data_dir", "instance_prompt") if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}; or a --preset that has them")
    if args.with_prior_preservation and None in (args.class_data_dir, args.class_prompt):
        parser.error("--with_prior_preservation needs --class_data_dir and --class_prompt")
    if args.class_prompt is not None and not args.with_prior_preservation:
        say_once("--class_prompt and all else about the class count only with --with_prior_preservation, which is off.")
    return args


if __name__ == "__main__":
    parse_args()  # says --help, and what is wrong with the flags, before PyTorch is imported, which takes seconds

from torch.utils.data import Dataset

from class_images import draw_class_images
from finetune.data.cache import Samples, held_out_from
from finetune.model.single_file import as_folder
from finetune.model.upload import prepare_upload
from finetune.run.folder import Run
from finetune.setup import fail_clearly, require_hardware, start_accelerator
from lora.training import LoraTraining, dry_run, end_if_finished, lora_plan_of
from pictures import Joined, Variants, open_subject


class SubjectWithPrior(Dataset):
    """Item i: variant i of the subject's pictures, and beside it a picture of the class.

    `samples` holds first the `num_instances` items of the subject, then those of the class; the shorter starts again.
    """

    def __init__(self, samples: Samples, num_instances: int) -> None:
        self.samples = samples
        self.num_instances = num_instances
        self.num_class = len(samples) - num_instances

    def __len__(self) -> int:
        # As long as the longer: of 64 pictures of the class only as many would else be seen as there are of the cat.
        return max(self.num_instances, self.num_class)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            self.samples[index % self.num_instances],
            self.samples[self.num_instances + index % self.num_class],
        )


def main() -> None:
    args = parse_args()
    if not args.dry_run:
        require_hardware(args.pretrained_model_name_or_path)
        args.pretrained_model_name_or_path = as_folder(args.pretrained_model_name_or_path)
    subject_in = partial(open_subject, prompt=args.instance_prompt, with_captions=True)
    subject, held_out = held_out_from(args, subject_in(args.instance_data_dir), subject_in)
    instances = Variants(subject, args.random_flip, args.random_crop)
    if args.dry_run:
        of_class = args.num_class_images if args.with_prior_preservation else 0
        return dry_run(args, max(len(instances), of_class))
    run = Run(args)
    run.add_data(args.instance_data_dir, subject)
    run.check()
    upload = prepare_upload(args)
    accelerator = start_accelerator(args, "dreambooth")
    plan = lora_plan_of(args)
    if not args.with_prior_preservation:
        end_if_finished(run, args.also_save, upload)
        training = LoraTraining(accelerator, plan, run, instances, held_out)
        training.run(lambda batch: training.loss([batch]), args.resume_from_checkpoint, upload)
        return

    # By the base itself, before anything is trained: what the class looks like to it is to stay (Ruiz et al., section
    # 3.3). Without them "a cat" drifted 71 % of the way to the subject, with them 17 % (former base, 2026-11-29).
    draw_class_images(
        plan.base,
        args.class_prompt,
        args.class_data_dir,
        args.num_class_images,
        args.validation_guidance_scale,
        accelerator,
    )
    class_images = open_subject(args.class_data_dir, args.class_prompt, args.num_class_images)
    run.add_data(args.class_data_dir, class_images, "class")
    # Once more, as only now it is known which pictures of the class there are.
    run.check()
    end_if_finished(run, args.also_save, upload)
    training = LoraTraining(
        accelerator,
        plan,
        run,
        # One data set, so that all is encoded in one go; SubjectWithPrior takes it apart again.
        Joined([instances, class_images]),
        held_out,
        arrange=lambda samples: SubjectWithPrior(samples, len(instances)),
    )
    # A batch is a pair of batches here, the subject's and the class's: eq. 2's two terms.
    loss = partial(training.loss, weights=(1.0, args.prior_loss_weight), keep_last=args.prior_target == "base")
    training.run(loss, args.resume_from_checkpoint, upload)


if __name__ == "__main__":
    with fail_clearly():
        main()
