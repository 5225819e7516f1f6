"""Trains a ControlNet on Fill50K, or on any images with conditions and captions.

The defaults are the real run: Stable Diffusion 1.4 at 512 px on one CUDA GPU (see train.sh). On a laptop, in minutes:

    python train.py --pretrained_model_name_or_path ../tiny_sd --dataset_name rendered --resolution 128 \
        --learning_rate 1e-3 --train_batch_size 16 --max_train_steps 1000 --output_dir ../runs/laptop

Objective: Zhang et al., 2023, https://arxiv.org/abs/2302.05543, eq. 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from evaluate import generate, results_grid, score_all
from torch.utils.data import Dataset

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from fill50k import load_data
from finetune.base import BaseModel, load_part
from finetune.cache import Encodings, load_encodings
from finetune.images import square, to_tensor
from finetune.objective import diffusion_loss
from finetune.setup import build_optimizer, fail_clearly, place_frozen, require_hardware, use_fast_attention
from finetune.training import Training
from metrics import summary
from utils import load_test_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="CompVis/stable-diffusion-v1-4", help="base: folder or hub name")
    add("--controlnet_model_name_or_path", default=None, help="start from this ControlNet instead of the UNet's copy")
    add("--conditioning_channels", type=int, nargs="+", default=[16, 32, 96, 256], help="condition embedding's widths")
    add("--dataset_name", default="fusing/fill50k", help="'rendered' (no download), folder, zip, or hub name")
    add("--image_column", default="image", help="the data's column of images")
    add("--conditioning_image_column", default="conditioning_image", help="the data's column of conditions")
    add("--caption_column", default="text", help="the data's column of prompts")
    add("--max_train_samples", type=int, default=None, help="use the first so many samples only")
    add("--output_dir", type=Path, default=Path("../runs/controlnet"), help="checkpoints, logs, pictures, the result")
    add("--resolution", type=int, default=512, help="side of the training images, px")
    add("--train_batch_size", type=int, default=4, help="samples a step, for each process")
    add("--gradient_accumulation_steps", type=int, default=4, help="batches whose gradients make one step")
    add("--max_train_steps", type=int, default=12500, help="optimisation steps")
    add("--learning_rate", type=float, default=1e-5)
    add("--lr_scheduler", default="constant", help="any schedule of diffusers: constant, cosine, linear, ...")
    add("--lr_warmup_steps", type=int, default=0)
    add("--max_grad_norm", type=float, default=1.0)
    add("--proportion_empty_prompts", type=float, default=0.0, help="share of prompts replaced by the empty one")
    add("--snr_gamma", type=float, default=None, help="weight timesteps by min-SNR; 5 is usual")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    add("--gradient_checkpointing", action="store_true", help="less memory, a third slower")
    add("--use_8bit_adam", action="store_true", help="less memory; needs bitsandbytes")
    add("--no_cache", action="store_true", help="encode images and prompts at every step, not once")
    add("--dataloader_num_workers", type=int, default=0)
    add("--checkpointing_steps", type=int, default=500)
    add("--checkpoints_total_limit", type=int, default=2, help="older checkpoints are removed")
    add("--resume_from_checkpoint", default=None, help="'latest' or a folder; goes on exactly where it was")
    add("--validation_steps", type=int, default=500, help="draw and score the test conditions this often (0: never)")
    add("--validation_guidance_scale", type=float, default=7.5)
    add("--seed", type=int, default=0)
    return parser.parse_args()


class ControlNetDataset(Dataset):
    """Item i: the condition (3, resolution, resolution) in 0..1 with either encodings or the image and its prompt."""

    def __init__(self, data: Any, resolution: int, encodings: Encodings | None) -> None:
        self.data = data
        self.resolution = resolution
        self.encodings = encodings

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.encodings is not None:
            latents, text_embeddings = self.encodings.sample(index)
            condition = self.data.conditioning_image(index)
            item = {"latents": latents, "text_embeddings": text_embeddings}
        else:
            sample = self.data[index]
            condition = sample["conditioning_image"]
            item = {"image": to_tensor(square(sample["image"], self.resolution)) * 2 - 1, "text": sample["text"]}
        return {"condition": to_tensor(square(condition, self.resolution)), **item}


def load_models(
    base: str,
    controlnet: str | None,
    conditioning_channels: list[int],
    gradient_checkpointing: bool,
    accelerator: Accelerator,
) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """The frozen UNet, and the ControlNet to train: a given one, or a copy of the UNet's encoder; always float32."""
    unet = load_part(UNet2DConditionModel, base, "unet", torch_dtype=torch.float32)
    if controlnet is None:
        trained = ControlNetModel.from_unet(unet, conditioning_channels)
    else:
        trained = ControlNetModel.from_pretrained(controlnet, torch_dtype=torch.float32)
    trained.train()
    place_frozen(unet, accelerator)
    for model in (unet, trained):
        use_fast_attention(model, accelerator.device)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
    return unet, trained


def validate(
    step: int,
    accelerator: Accelerator,
    base: BaseModel,
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    guidance_scale: float,
    folder: Path,
) -> dict[str, float]:
    """Draws the five test conditions into `folder`, returns their scores, and leaves everything as it was."""
    pipeline = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=base.sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    conditions, prompts = load_test_data()
    was_on, was_training = base.vae.device, controlnet.training
    base.to(accelerator.device)
    controlnet.eval()
    with accelerator.autocast():
        images = generate(pipeline, conditions, prompts, guidance_scale=guidance_scale)
    controlnet.train(was_training)
    base.to(was_on)

    scores = score_all(images, conditions, prompts)
    folder.mkdir(parents=True, exist_ok=True)
    grid = results_grid(images, conditions, prompts, scores)
    grid.save(folder / f"step-{step:06d}.png")
    for tracker in accelerator.trackers:
        tracker.log_images({"validation": torch.stack([to_tensor(image) for image in images]).numpy()}, step=step)
    result = {f"validation/{name}": value for name, value in summary(scores).items()}
    accelerator.print(f"\nStep {step}: mean IoU of the test conditions {result['validation/mean_iou']:.3f}")
    return result


def main() -> None:
    args = parse_args()
    require_hardware(args.pretrained_model_name_or_path)
    project = ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs"))
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with="tensorboard",
        project_config=project,
    )
    accelerator.init_trackers("controlnet")
    set_seed(args.seed)

    base = BaseModel.load(args.pretrained_model_name_or_path)
    unet, controlnet = load_models(
        base.name,
        args.controlnet_model_name_or_path,
        args.conditioning_channels,
        args.gradient_checkpointing,
        accelerator,
    )

    # Data: encoded once, after which the encoders leave the device.
    data = load_data(
        args.dataset_name,
        args.image_column,
        args.conditioning_image_column,
        args.caption_column,
        args.max_train_samples,
    )
    base.to(accelerator.device)
    no_prompt = base.encode_prompts([""]).to(accelerator.device)
    encodings = None
    if not args.no_cache:
        encodings = load_encodings(
            base, data, args.resolution, args.output_dir / "cache", accelerator, args.dataloader_num_workers
        )
        base.to("cpu")
    dataset = ControlNetDataset(data, args.resolution, encodings)

    optimizer = build_optimizer(controlnet.parameters(), args.learning_rate, args.use_8bit_adam, accelerator.device)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    controlnet, optimizer = accelerator.prepare(controlnet, optimizer)
    accelerator.register_for_checkpointing(lr_scheduler)
    training = Training(
        accelerator,
        controlnet,
        optimizer,
        lr_scheduler,
        save_model=lambda model, folder: model.save_pretrained(folder),
        load_model=lambda model, folder: model.load_state_dict(ControlNetModel.from_pretrained(folder).state_dict()),
        output_dir=args.output_dir,
        model_name="controlnet",
        settings={
            "data": data.fingerprint,
            "samples_per_step": args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes,
            "learning_rate": args.learning_rate,
            "seed": args.seed,
        },
        max_train_steps=args.max_train_steps,
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        checkpointing_steps=args.checkpointing_steps,
        checkpoints_total_limit=args.checkpoints_total_limit,
    )
    training.resume(args.resume_from_checkpoint)
    batches = training.batches(dataset, args.train_batch_size, args.dataloader_num_workers)

    def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
        condition = batch["condition"].to(accelerator.device)  # (B, 3, H, W)
        if encodings is not None:
            latents = batch["latents"].to(accelerator.device)  # (B, 4, H / 8, W / 8)
            text_embeddings = batch["text_embeddings"].to(accelerator.device)  # (B, T, D)
        else:
            latents, text_embeddings = base.encode_images(batch["image"]), base.encode_prompts(batch["text"])
        if args.proportion_empty_prompts:
            dropped = torch.rand(len(latents), 1, 1, device=latents.device) < args.proportion_empty_prompts
            text_embeddings = torch.where(dropped, no_prompt, text_embeddings)

        def predict(noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            down, mid = controlnet(noisy_latents, timesteps, text_embeddings, condition, return_dict=False)
            return unet(noisy_latents, timesteps, text_embeddings, None, down, mid).sample

        with accelerator.autocast():
            return diffusion_loss(predict, base.scheduler, latents, args.snr_gamma)

    def draw_and_score(step: int) -> dict[str, float]:
        model = accelerator.unwrap_model(controlnet)
        folder = args.output_dir / "validation"
        return validate(step, accelerator, base, unet, model, args.validation_guidance_scale, folder)

    if training.run(batches, compute_loss, draw_and_score, args.validation_steps):
        accelerator.print(f"The trained ControlNet: {training.save_final()}")
    accelerator.end_training()


if __name__ == "__main__":
    with fail_clearly():
        main()
