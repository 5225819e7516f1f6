"""How far off is the base's guess of a picture, by what the picture shows and how much noise is on it?

    PYTHONPATH=. python tiny_sd/measures/guesses.py
    PYTHONPATH=. python tiny_sd/measures/guesses.py other/pipeline

Of scenes that no training shows: the clean latents as guessed in one step, root mean square, where the latents' own
deviation is 1. It takes a minute, and tells sooner than any judge of pictures whether a training still gets anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from finetune.argument_types import natural_int
from finetune.model.dtypes import dtype_argument
from tiny_sd.measures.evaluate import BASE
from tiny_sd.measures.from_truth import tokens
from tiny_sd.pictures.scenes import scene
from tiny_sd.training.train_denoiser import encode
from tiny_sd.training.train_vae import autocast

# The shares of things, prints, places and pairs that make all scenes of one kind.
KINDS = {
    "single things": (1, 0, 0, 0), "in places": (1, 0, 1, 0), "pairs": (1, 0, 0, 1), "prints": (0, 1, 0, 0),
    "discs, shapes": (0, 0, 0, 0),
}  # fmt: skip
NEVER_TRAINED = 10_000_000  # the first number of a scene that is not among those trained on
SCENES = 96


@torch.no_grad()
def errors(pipeline: StableDiffusionPipeline, shares: tuple[float, ...], timesteps: list[int]) -> list[float]:
    """One for each of the timesteps."""
    images, captions = zip(*(scene(NEVER_TRAINED + i, 128, *shares) for i in range(SCENES)))
    texts = [some[i % len(some)] for i, some in enumerate(captions)]
    pictures = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    latents = encode(pipeline.vae, pictures, 128).float()
    context = pipeline.text_encoder(tokens(pipeline, texts))[0]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for timestep in timesteps:
        of_each = torch.full((len(latents),), timestep)
        with autocast(latents.device):
            predicted = pipeline.unet(pipeline.scheduler.add_noise(latents, noise, of_each), of_each, context).sample
        signal = pipeline.scheduler.alphas_cumprod[timestep]
        found.append(((predicted.float() - noise).square().mean() * (1 - signal) / signal).sqrt().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=BASE, help="pipeline to measure; otherwise this one")
    parser.add_argument("--timesteps", type=natural_int, nargs="+", default=[49, 99, 149, 249, 399, 599, 799])
    args = parser.parse_args()
    in_float32 = dtype_argument(StableDiffusionPipeline, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(args.folder, **in_float32)
    print(f"{'':16}" + "".join(f"{timestep:>8}" for timestep in args.timesteps))
    for kind, shares in KINDS.items():
        print(f"{kind:16}" + "".join(f"{error:8.3f}" for error in errors(pipeline, shares, args.timesteps)), flush=True)


if __name__ == "__main__":
    main()
