"""Trains a ControlNet on Fill50K, or on any images with conditions and captions.

On Stable Diffusion 1.4 and one GPU, `--preset sd14`, as train.sh does. On a laptop, in minutes:

    python train.py --preset demo

Objective: Zhang et al., 2023, https://arxiv.org/abs/2302.05543, section 3.3.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Callable

from finetune.argument_types import name_or_path, natural_int, or_none, positive_float, positive_int, share
from finetune.flags import parse, plan_of, training_parser


def parse_args() -> argparse.Namespace:
    parser = training_parser(
        "train.py",
        __doc__.splitlines()[0],
        output_dir=Path("../runs/controlnet"),
        gradient_accumulation_steps=4,
        # Of 16 samples each, those of a batch of 4 added up four times: Fill50K's 50,000 are seen four times. The rate
        # is that of the authors' tutorial for Stable Diffusion 1.5.
        max_train_steps=12500,
        learning_rate=1e-5,
    )
    add = parser.add_argument
    add("--controlnet_model_name_or_path", type=or_none(name_or_path), help="start from this, not the UNet's copy")
    add(
        "--new_layers_lr_ratio",
        type=positive_float,
        default=1.0,
        help="rate of zero convolutions and the condition's embedding over that of the UNet's copy",
    )
    add("--noise_alone", type=share, default=0.0, help="share of samples shown as sampling starts: as noise alone")
    add("--conditioning_channels", type=positive_int, nargs="+", default=[16, 32, 96, 256], help="embedding's widths")
    add("--dataset_name", default="fusing/fill50k", help="'rendered' (no download), folder, zip, or hub name")
    add("--image_column", default="image", help="the data's column of images")
    add("--conditioning_image_column", default="conditioning_image", help="the data's column of conditions")
    add("--caption_column", default="text", help="the data's column of prompts")
    add("--max_train_samples", type=or_none(positive_int), default=None, help="use the first so many samples only")
    add("--validation_steps", type=natural_int, default=500, help="draw and score the tests this often (0: never)")
    return parse(parser)


if __name__ == "__main__":
    parse_args()  # says --help, and what is wrong with the flags, before PyTorch is imported, which takes seconds

import torch
from accelerate import Accelerator
from PIL import Image

from diffusion.controlnet import ControlNetModel
from diffusion.denoiser import check_widths, load_models, predict_noise, rehearsal
from diffusion.loading import load_weights
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from evaluate import center, generate, results_grid, score_all
from examples import load_test_data
from fill50k import PartOfPairs, load_data
from finetune.data.cache import Samples, held_out_from, load_encodings
from finetune.data.images import square, to_tensor
from finetune.devices import picture_layout, send
from finetune.estimate import dry_run
from finetune.model.base import BaseModel
from finetune.model.cards import Origin, give_texts, origin_of, write_card
from finetune.model.sampler import DrawingError, sampling_scheduler
from finetune.model.single_file import as_folder
from finetune.model.upload import end_if_finished, prepare_upload
from finetune.objective import HeldOut, diffusion_loss, drop_prompts, is_held_out
from finetune.run.folder import Run
from finetune.run.records import log_images
from finetune.setup import fail_clearly, require_hardware, start_accelerator, would_run_on
from finetune.training_loop import Training
from metrics import chance, not_aligned_yet, summary

# Four bytes each, in every process that loads data: 2,048 conditions of 128 px, 128 of 512 px.
KEPT_PIXELS = 2**25


class ControlNetSamples(Samples):
    """Item i: the condition (3, resolution, resolution) in 0..1, and the image and the prompt or their encodings."""

    def __init__(self, *of_samples: Any) -> None:
        super().__init__(*of_samples)
        self.kept: dict[int, Image.Image] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        # In 0..1 where images are in -1..1: what is black, most of an outline's picture, is zero and says nothing.
        return {"condition": to_tensor(self.condition(index)), **super().__getitem__(index)}

    def condition(self, index: int) -> Image.Image:
        """Made small once, as long as there is room for it: of the rendered Fill50K it takes 1.3 ms each time."""
        if index in self.kept:
            return self.kept[index]
        condition = square(self.data.conditioning_image(index), self.resolution)
        if len(self.kept) < KEPT_PIXELS // self.resolution**2:
            self.kept[index] = condition
        return condition


def save_controlnet(controlnet: ControlNetModel, state_dict: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes the folder that `ControlNetModel.from_pretrained` reads, here and in diffusers."""
    # With FSDP each process has a part of the weights in its model; the state dict alone has been gathered from all.
    with torch.device("meta"):  # no memory: the weights are those of the state dict
        whole = ControlNetModel.from_config(controlnet.config)
    whole.load_state_dict(state_dict, assign=True)
    whole.save_pretrained(folder)


def describe(origin: Origin, output_dir: Path, place: Path, folder: Path) -> None:
    """Writes into a ControlNet's files, and beside them, how it came about; the folder is to become `place`."""
    give_texts(origin, folder)
    write_card(origin, folder, output_dir, place)


def validate(
    step: int,
    accelerator: Accelerator,
    base: BaseModel,
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    guidance_scale: float,
    folder: Path,
    samples: int,
) -> dict[str, float]:
    """Draws the five test conditions into `folder`, after so many `samples` in training, and returns their scores."""
    pipeline = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=sampling_scheduler(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    conditions, prompts = load_test_data()
    controlnet.eval()
    try:
        with base.on(accelerator.device), accelerator.autocast():
            images = generate(pipeline, conditions, prompts, guidance_scale=guidance_scale)
    except DrawingError as error:  # the training goes on: its loss may still be finite
        accelerator.print(f"\nStep {step}: {error}")
        return {}
    finally:
        # Else what is switched off for drawing, gradient checkpointing among it, would stay off.
        controlnet.train()

    scores = score_all(images, conditions, prompts)
    if accelerator.is_main_process:  # all have drawn the same: with FSDP none has the model alone
        folder.mkdir(parents=True, exist_ok=True)
        results_grid(images, conditions, prompts, scores).save(folder / f"step-{step:06d}.png")
    log_images(accelerator, images, step)
    result = {f"validation/{name}": value for name, value in summary(scores).items()}
    accelerator.print(f"\nStep {step}: mean IoU of the test conditions {result['validation/mean_iou']:.3f}")
    words = not_aligned_yet(result["validation/mean_iou"], chance([center(one) for one in conditions]), samples)
    if words is not None:
        accelerator.print(words)
    return result


def data_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The pairs to train on, and those held out; None where none are asked for."""
    columns = (args.image_column, args.conditioning_image_column, args.caption_column)
    data = load_data(args.dataset_name, *columns, args.max_train_samples)
    return held_out_from(args, data, lambda folder: load_data(folder, *columns), PartOfPairs)


def tell_and_end(args: argparse.Namespace) -> None:
    """--dry_run: data that would have to be fetched are not counted."""
    here = args.dataset_name == "rendered" or Path(args.dataset_name).expanduser().exists()
    device = would_run_on(args.pretrained_model_name_or_path)
    dry_run(args, rehearsal(args, device), device, len(data_of(args)[0]) if here else None)


def encode_once(
    args: argparse.Namespace, base: BaseModel, data: Any, held_out: Any, accelerator: Accelerator
) -> list[ControlNetSamples]:
    """What is trained on and what is held out, encoded once, after which the encoders leave the device.

    At the real size the encoders take 1.1 TFLOP of the 3.4 of an image: encoded once, they cost nothing from then on.
    """
    parts, encodings = [part for part in (data, held_out) if part is not None], [None, None]
    if args.no_cache:
        base.tell_of_cut(data.texts(), accelerator.print)
    else:
        cache, workers = args.output_dir / "cache", args.dataloader_num_workers
        encodings = [load_encodings(base, part, args.resolution, cache, accelerator, workers) for part in parts]
        base.to("cpu")
    return [ControlNetSamples(part, args.resolution, kept) for part, kept in zip(parts, encodings)]


def compute_loss(
    batch: dict[str, Any],
    denoise: Callable[..., torch.Tensor],
    base: BaseModel,
    no_prompt: torch.Tensor,
    args: argparse.Namespace,
    accelerator: Accelerator,
) -> torch.Tensor:
    """The paper's objective (section 3.3) for one batch; `denoise` is UNet and ControlNet together."""
    condition = send(batch["condition"], accelerator.device)  # (B, 3, H, W)
    # Embedding it, a large picture with few channels, takes a third of the time on a CPU in this layout.
    condition = condition.contiguous(memory_format=picture_layout(accelerator.device))
    latents, text_embeddings = base.encoded(batch, accelerator.device)  # (B, 4, H / 8, W / 8), (B, T, D)
    measured = batch if is_held_out(batch) else None
    # The paper empties half of the prompts, so that a condition is read without one, too (section 3.3); of a disc only
    # the prompt knows the colours. Held-out samples keep theirs: chance would make two measurements differ.
    if measured is None:
        text_embeddings = drop_prompts(text_embeddings, no_prompt, args.proportion_empty_prompts)
    predict = partial(denoise, text_embeddings=text_embeddings, condition=condition)
    with accelerator.autocast():
        return diffusion_loss(
            predict, base.scheduler, latents, args.snr_gamma, held_out=measured, noise_alone=args.noise_alone
        )


def main() -> None:
    args = parse_args()
    if args.dry_run:
        return tell_and_end(args)
    # In this order, so that what a person can mend is said before minutes are spent on anything.
    require_hardware(args.pretrained_model_name_or_path)
    args.pretrained_model_name_or_path = as_folder(args.pretrained_model_name_or_path)
    data, held_out = data_of(args)
    run = Run(args)
    run.add_data(args.dataset_name, data)
    run.check()
    folder, upload = args.output_dir / "controlnet", prepare_upload(args)
    # A finished run says so before PyTorch's processes join and the base is loaded.
    end_if_finished(run, upload, folder)
    accelerator = start_accelerator(args, "controlnet")

    base = BaseModel.load(args.pretrained_model_name_or_path)
    base.require_size(args.resolution)
    unet, controlnet = load_models(base.name, args, accelerator)
    check_widths(controlnet, base.factor, args.controlnet_model_name_or_path)
    base.to(accelerator.device)
    no_prompt = base.encode_prompts([""]).to(accelerator.device)
    samples, *held_out_samples = encode_once(args, base, data, held_out, accelerator)
    training = Training(
        accelerator,
        controlnet,
        plan_of(args),
        samples,
        save_model=save_controlnet,
        load_model=load_weights,
        output_dir=args.output_dir,
        model_name="controlnet",
        settings=run.settings,
        options=vars(args),
        lr_ratios={"controlnet_": args.new_layers_lr_ratio},  # as the layers' names begin that the UNet lacks
    )
    training.rehearsal = partial(rehearsal, args, accelerator.device)
    training.resume(args.resume_from_checkpoint)
    unet_dtype = unet.dtype

    @training.compiled
    def denoise(
        noisy_latents: torch.Tensor, timesteps: torch.Tensor, text_embeddings: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        return predict_noise(unet, training.model, unet_dtype, noisy_latents, timesteps, text_embeddings, condition)

    loss = partial(compute_loss, denoise=denoise, base=base, no_prompt=no_prompt, args=args, accelerator=accelerator)

    def draw_and_score(step: int) -> dict[str, float]:
        folder, seen = args.output_dir / "validation", step * training.samples_per_step
        return validate(step, accelerator, base, unet, controlnet, args.validation_guidance_scale, folder, seen)

    def save_best(*gathered: Any) -> str:
        name = training.model_writer.save_into(*gathered)
        give_texts(origin_of("ControlNet", training, unet.config, base), gathered[-1] / name)
        return name

    training.save_best = save_best
    # The loss hardly moves when a ControlNet begins to obey; whether it does, the drawn test conditions say.
    training.aligned_by = "validation/mean_iou"
    if held_out is not None:
        training.held_out, training.held_out_loss = HeldOut(held_out_samples[0], held_out.fingerprint), loss
    if training.run(loss, draw_and_score, args.validation_steps):
        card = partial(describe, origin_of("ControlNet", training, unet.config, base), args.output_dir, folder)
        training.finish("ControlNet", training.save_final(card))
        if upload is not None:
            upload.send(folder)
    accelerator.end_training()


if __name__ == "__main__":
    with fail_clearly():
        main()
