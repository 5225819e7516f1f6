"""Where is a thing lost that the base draws? True pictures' latents get a timestep's noise and are denoised from there.

    PYTHONPATH=. python tiny_sd/measures/from_truth.py
    PYTHONPATH=. python tiny_sd/measures/from_truth.py other/pipeline --timesteps 50 250 999

From 999 on the base draws all by itself; from 250 on, place and outline are true, and details alone are its own. For
each it prints how many of 100 things are recognised, and how far the clean latents as guessed there, in one step, are
from the true ones (root mean square, where the latents' own deviation is 1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from finetune.argument_types import natural_int
from finetune.data.colors import COLORS
from finetune.model.dtypes import dtype_argument
from finetune.model.sampler import sampling_scheduler
from tiny_sd.measures import judge
from tiny_sd.measures.evaluate import BASE, as_images
from tiny_sd.measures.recognition import recognise
from tiny_sd.pictures.icons import STYLES, icon, load_subjects
from tiny_sd.pictures.scenes import CANVAS, ICON_SIZE, NAMES
from tiny_sd.training.train_denoiser import encode
from tiny_sd.training.train_vae import autocast

THINGS, STEPS, GUIDANCE_SCALE = 100, 20, 2.0


def true_pictures() -> tuple[torch.Tensor, list[str], list[str]]:
    """uint8 pictures (things, 3, 128, 128) of things as training shows most of them, their prompts, what they show."""
    rng, subjects = np.random.default_rng(6), load_subjects()
    images, prompts, shown = [], [], []
    for name in rng.permutation(list(subjects))[:THINGS]:
        style, ground = str(rng.choice(list(STYLES))), str(rng.choice(NAMES))
        image = Image.new("RGB", (CANVAS, CANVAS), COLORS[ground])
        drawing = icon(style, str(name), ICON_SIZE).resize((CANVAS * 3 // 4,) * 2, Image.BICUBIC)
        image.paste(drawing, (CANVAS // 8,) * 2, drawing)
        images.append(np.asarray(image.resize((128, 128), Image.BOX)))
        shown.append(subjects[str(name)])
        prompts.append(f"a {style} drawing of {shown[-1]} on a {ground} background")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), prompts, shown


def tokens(pipeline: StableDiffusionPipeline, texts: list[str]) -> torch.Tensor:
    settings = {"padding": "max_length", "max_length": pipeline.tokenizer.model_max_length, "truncation": True}
    return pipeline.tokenizer(texts, return_tensors="pt", **settings).input_ids


@torch.no_grad()
def denoise(pipeline: StableDiffusionPipeline, latents: torch.Tensor, prompts: list[str], start: int):
    """The latents that come of `latents` with the noise of the first sampling timestep up to `start`; that timestep;
    and the error of the guess there."""
    text, empty = (pipeline.text_encoder(tokens(pipeline, texts))[0] for texts in (prompts, [""] * len(prompts)))
    scheduler = sampling_scheduler(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    first = int((scheduler.timesteps > start).sum())
    timesteps = scheduler.timesteps[first:]
    scheduler.set_begin_index(first)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    sample, error = scheduler.add_noise(latents, noise, timesteps[:1].expand(len(latents))), None
    for timestep in timesteps:
        with autocast(latents.device):
            with_text, without = (pipeline.unet(sample, timestep, context).sample.float() for context in (text, empty))
        if error is None:
            signal = scheduler.alphas_cumprod[timestep]
            error = ((with_text - noise).square().mean() * (1 - signal) / signal).sqrt().item()
        guided = without + GUIDANCE_SCALE * (with_text - without)
        sample = scheduler.step(guided, timestep, sample).prev_sample
    return sample, int(timesteps[0]), error


@torch.no_grad()
def decode(pipeline: StableDiffusionPipeline, latents: torch.Tensor) -> list[Image.Image]:
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return as_images(((pixels.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=BASE, help="pipeline to measure; otherwise this one")
    parser.add_argument("--timesteps", type=natural_int, nargs="*", default=[999, 800, 600, 400, 250, 150, 100, 50])
    args = parser.parse_args()
    in_float32 = dtype_argument(StableDiffusionPipeline, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(args.folder, **in_float32)
    judges = {"recognition.py": recognise}
    if judge.is_installed():
        judges["judge.py"] = judge.recognise
    else:
        print(f"The second judge is not installed: pip install {judge.PACKAGES}")

    def report(what: str, images: list[Image.Image], more: str = "") -> None:
        shares = (
            f"{np.mean([one == right for one, right in zip(recognised(images), shown)]):.0%} ({who})"
            for who, recognised in judges.items()
        )
        print(f"{what}: recognised {', '.join(shares)}{more}", flush=True)

    pictures, prompts, shown = true_pictures()
    report("true pictures", as_images(pictures.permute(0, 2, 3, 1).numpy() / 255))
    latents = encode(pipeline.vae, pictures, 128).float()
    report("the same, through the autoencoder", decode(pipeline, latents))
    for start in args.timesteps:
        found, timestep, error = denoise(pipeline, latents, prompts, start)
        report(f"denoised from timestep {timestep}", decode(pipeline, found), f", guess off by {error:.3f}")


if __name__ == "__main__":
    main()
