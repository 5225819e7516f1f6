"""The embedded base's successor, as far as it is there: see docs/base.md."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from finetune.base import load_part
from processes import BASE, ROOT

SAMPLES = ROOT / "task_2_lora" / "sample_data"


def test_the_next_autoencoder_gives_back_the_pictures_of_task_2():
    """It loads on both stacks, and loses less than half of what the present one does."""
    pictures = [Image.open(file) for file in sorted(SAMPLES.glob("dreambooth-cat/*.png"))]
    pixels = np.stack([np.asarray(picture.convert("RGB").resize((128, 128), Image.BOX)) for picture in pictures])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    errors = {}
    for part in ("vae", "next/vae"):
        vae = load_part(AutoencoderKL, BASE, part)
        with torch.no_grad():
            back = vae.decode(vae.encode(images).latent_dist.mean).sample
        errors[part] = (back - images).abs().mean().item()
    assert errors["next/vae"] < 0.045 and errors["vae"] > 2 * errors["next/vae"]
