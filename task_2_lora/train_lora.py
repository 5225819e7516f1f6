"""Trains a LoRA: a small file that teaches Stable Diffusion a style, from pictures with captions.

The defaults are the real run: Stable Diffusion 1.4 at 512 px on one CUDA GPU (see scripts/). On a laptop, in minutes:

    MODEL_NAME=../tiny_sd sh scripts/train_lora_custom.sh

LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from data import CaptionedImages, Variants
from drawing import validate
from finetune.base import BaseModel
from finetune.cache import Samples, load_encodings
from finetune.flags import plan_of
from finetune.objective import diffusion_loss, drop_prompts
from finetune.setup import fail_clearly, require_hardware, start_accelerator
from finetune.training import Training
from lora import load_denoiser, load_state, lora_parser, save_lora, save_state


def parse_args() -> argparse.Namespace:
    parser = lora_parser(__doc__.splitlines()[0], validation_epochs=1, output_dir=Path("../runs/lora"))
    add = parser.add_argument
    add("--dataset_name", default=None, help="pictures with captions: data set of the hub")
    add("--train_data_dir", default=None, help="or a folder of pictures with a metadata.jsonl")
    add("--image_column", default="image", help="the data's column of images")
    add("--caption_column", default="text", help="the data's column of captions")
    add("--max_train_samples", type=int, default=None, help="use the first so many samples only")
    add("--noise_offset", type=float, default=0.0, help="for very dark or bright styles; 0.05 to 0.1 is usual")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    require_hardware(args.pretrained_model_name_or_path)
    captioned = CaptionedImages(
        args.dataset_name, args.train_data_dir, args.image_column, args.caption_column, args.max_train_samples
    )
    data = Variants(captioned, args.random_flip, args.random_crop)
    accelerator = start_accelerator(
        args.output_dir, "lora", args.mixed_precision, args.gradient_accumulation_steps, args.seed
    )

    # The data are encoded once, after which the encoders leave the device.
    base = BaseModel.load(args.pretrained_model_name_or_path)
    base.to(accelerator.device)
    no_prompt = base.tokenize([""]) if args.train_text_encoder else base.encode_prompts([""])
    encodings = None
    if not args.no_cache:
        encodings = load_encodings(
            base, data, args.resolution, args.output_dir / "cache", accelerator, args.dataloader_num_workers
        )
        base.to("cpu")

    alpha = args.rank if args.alpha is None else args.alpha
    denoiser = load_denoiser(
        base, args.rank, alpha, args.train_text_encoder, args.gradient_checkpointing, args.seed, accelerator
    )
    training = Training(
        accelerator,
        denoiser,
        plan_of(args),
        Samples(data, args.resolution, encodings),
        save_model=save_state,
        load_model=load_state,
        output_dir=args.output_dir,
        model_name="lora",
        settings={"data": data.fingerprint, "rank": args.rank, "alpha": alpha},
    )
    training.resume(args.resume_from_checkpoint)

    def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
        latents, text_embeddings = base.encoded(batch, accelerator.device)  # (B, 4, H / 8, W / 8), (B, T, D)
        text = base.tokenize(batch["text"]) if args.train_text_encoder else text_embeddings
        text = drop_prompts(text, no_prompt, args.proportion_empty_prompts)
        with accelerator.autocast():
            return diffusion_loss(
                lambda noisy_latents, timesteps: training.model(noisy_latents, timesteps, text),
                base.scheduler,
                latents,
                args.snr_gamma,
                args.noise_offset,
            )

    def draw(step: int) -> dict[str, float]:
        prompts = [args.validation_prompt] * args.num_validation_images
        picture = args.output_dir / "validation" / f"step-{step:06d}.png"
        return validate(accelerator, base, denoiser, prompts, args.validation_guidance_scale, args.seed, picture)

    validation_steps = args.validation_epochs * training.steps_an_epoch if args.validation_prompt else 0
    if training.run(compute_loss, draw, validation_steps) and accelerator.is_main_process:
        accelerator.print(f"The trained LoRA: {save_lora(denoiser, args.output_dir, args.also_save == 'kohya')}")
    accelerator.end_training()


if __name__ == "__main__":
    with fail_clearly():
        main()
