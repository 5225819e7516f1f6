"""What an autoencoder loses: pictures that it never saw, through its latents and back.

    PYTHONPATH=. python tiny_sd/measures/round_trip.py
    PYTHONPATH=. python tiny_sd/measures/round_trip.py older/vae tiny_sd/vae

Prints the mean absolute error of each autoencoder (images in -1..1, 128 px) and writes a picture: pictures in the first
row, and below it what each gives back.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from finetune.model.base import load_part
from tiny_sd.training.train_vae import (
    BASE,
    SHARES,
    VALIDATION_START,
    doodle_pixels,
    measure,
    open_pictures,
    pixels,
    render,
    to_range,
)

SAMPLES = BASE.parent / "task_2_lora" / "sample_data"
COLUMNS = 12


def held_out(number: int) -> dict[str, torch.Tensor]:
    """Pictures that no autoencoder was trained on, by what they show: uint8 tensors (pictures, 3, 128, 128)."""
    indices = range(VALIDATION_START, VALIDATION_START + number)
    return {
        "scenes": render(partial(pixels, shares=SHARES), indices, 128, "Scenes"),
        "doodles": render(doodle_pixels, indices, 128, "Doodles"),
        "style": open_pictures(SAMPLES / "artistic-custom" / "train", 128),
        "cat": open_pictures(SAMPLES / "dreambooth-cat", 128),
    }


@torch.no_grad()
def back(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """What comes back of uint8 images, as uint8."""
    found = vae.decode(vae.encode(to_range(images)).latent_dist.mean).sample
    return ((found.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def in_a_row(images: torch.Tensor) -> torch.Tensor:
    """(pictures, 3, side, side) to (side, pictures * side, 3)."""
    return images.permute(2, 0, 3, 1).flatten(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vae", nargs="*", default=[str(BASE / "vae")], help="folders of autoencoders")
    parser.add_argument("--output", type=Path, default=Path("runs/round_trip.png"), help="(default: %(default)s)")
    args = parser.parse_args()

    pictures = held_out(128)
    shown = torch.cat([images[: COLUMNS // 4] for images in pictures.values()])
    rows = [in_a_row(shown)]
    print(f"{'mean absolute error':24}" + "".join(f"{name:>10}" for name in pictures))
    for name in args.vae:
        folder = Path(name).resolve()
        vae = load_part(AutoencoderKL, str(folder.parent), folder.name)
        print(f"{name:24}" + "".join(f"{measure(vae, images)[0]:10.4f}" for images in pictures.values()))
        rows.append(in_a_row(back(vae, shown)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows).numpy()).save(args.output)


if __name__ == "__main__":
    main()
