"""What the two trainings, the evaluation and the notebook share: drawing pictures with a LoRA."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from finetune.devices import drawing_dtype, keep_freed_memory, pick_device
from finetune.model.base import BaseModel, drawn_size, load_part
from finetune.model.dtypes import dtype_argument
from finetune.model.sampler import DrawingError, as_pictures, sampling_scheduler
from finetune.run.progress import progress_bar
from finetune.run.records import log_images
from lora.model import LoraDenoiser

# Drawn at once: two images of 512 px, or thirty-two of 128 px.
PIXELS_AT_ONCE = 2 * 512 * 512


def load_pipeline(base: str, device: torch.device | None = None) -> StableDiffusionPipeline:
    """The plain base model, ready for `load_lora`: half precision on a GPU, float32 elsewhere.

    Raises:
        BaseModelError: if the base model cannot be loaded.
    """
    device = device or pick_device()
    keep_freed_memory(device)
    dtype = drawing_dtype(device)
    # In this precision whatever the file holds; by itself the pipeline would take it as it comes in some releases.
    unet = load_part(UNet2DConditionModel, base, "unet", dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(
        base,
        unet=unet,
        safety_checker=None,
        requires_safety_checker=False,
        **dtype_argument(StableDiffusionPipeline, dtype),
    )
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler.config)
    return pipeline.to(device)


def images_at_once(pipeline: StableDiffusionPipeline) -> int:
    resolution = drawn_size(pipeline)
    return max(1, PIXELS_AT_ONCE // resolution**2)


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance_scale: float = 7.5,
    num_inference_steps: int = 20,
    unconditional: str = "lora",
) -> list[Image.Image]:
    """One image a prompt, at the base's size. Each depends on its prompt and seed, not on what it is drawn with.

    `unconditional`: whose guess for the empty prompt guidance compares with, the LoRA's or the base's own.

    Raises:
        DrawingError: if the model's numbers overflow.
    """
    batch_size = images_at_once(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in progress_bar(range(0, len(prompts), batch_size), desc="Drawing", leave=False):
        chosen = slice(start, start + batch_size)
        # Without guidance there is no such guess.
        by_base = unconditional == "base" and guidance_scale > 1
        with base_unconditional(pipeline, len(prompts[chosen])) if by_base else nullcontext({}) as embeddings:
            pixels = pipeline(
                list(prompts[chosen]),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                # On the CPU, one for each: a seed is the same noise on every device, in every batch, for base and LoRA.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
                output_type="np",
                **embeddings,
            ).images
        images += as_pictures(pixels)
    return images


@contextmanager
def base_unconditional(pipeline: StableDiffusionPipeline, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Lets the pipeline draw with the LoRA's guess for the prompt and the base's own for the empty one.

    Guidance moves away from what is guessed for the empty prompt. Where a LoRA has turned that, too, into what it was
    shown, it moves away from what was to be learnt (Phunyaphibarn et al., 2025, https://arxiv.org/abs/2503.20240).

    Yields what the pipeline's call needs for `batch_size` prompts besides: the base's embeddings of the empty one.
    """
    unet, tokenizer = pipeline.unet, pipeline.tokenizer
    empty = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    forward = unet.forward

    def each_half_by_its_model(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **how: Any):
        # (2 B, 4, h, w) and (2 B, 77, D), of which the pipeline puts the empty prompt's half first.
        (nothing, text), halves = encoder_hidden_states.chunk(2), sample.chunk(2)
        with without_lora(pipeline):
            (base,) = forward(halves[0], timestep, encoder_hidden_states=nothing, **how)
        (lora,) = forward(halves[1], timestep, encoder_hidden_states=text, **how)
        return (torch.cat([base, lora]),)

    with without_lora(pipeline), torch.no_grad():
        embeddings = pipeline.text_encoder(empty.to(pipeline.device))[0]  # (1, 77, D)
    unet.forward = each_half_by_its_model
    try:
        yield {"negative_prompt_embeds": embeddings.expand(batch_size, -1, -1)}
    finally:
        unet.forward = forward


@contextmanager
def without_lora(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """What is loaded is switched off inside."""
    pipeline.disable_lora()
    try:
        yield
    finally:
        pipeline.enable_lora()


def in_a_row(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Pictures of one size side by side on white, in rows of `columns`."""
    columns = columns or len(images)
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def validate(
    accelerator: Accelerator,
    base: BaseModel,
    denoiser: LoraDenoiser,
    prompts: Sequence[str],
    guidance_scale: float,
    seed: int,
    picture: Path,
) -> dict[str, float]:
    """Draws the prompts with the LoRA as it is now into `picture` and the log, and leaves everything as it was."""
    # The matrices are the same in all processes: one draws, the others wait at the next step.
    if not accelerator.is_main_process:
        return {}
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=denoiser.unet,
        scheduler=sampling_scheduler(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    denoiser.eval()
    try:
        # As in training: the frozen weights may be half precision, and the matrices float32.
        with base.on(accelerator.device), accelerator.autocast(), torch.no_grad():
            images = generate(pipeline, prompts, range(seed, seed + len(prompts)), guidance_scale)
    except DrawingError as error:  # the training goes on: its loss may still be finite
        print(f"No {picture.name}: {error}")
        return {}
    finally:
        denoiser.train()
    picture.parent.mkdir(parents=True, exist_ok=True)
    in_a_row(images).save(picture)
    log_images(accelerator, images, step=int(picture.stem[5:]))
    return {}
