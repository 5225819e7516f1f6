"""Trains the embedded base's autoencoder: images to latents of an eighth of their size, and back.

    python tiny_sd/train_vae.py

The autoencoder is convolutional, so it learns on 64 px pieces and serves 128 px. Objective of latent diffusion
(Rombach et al., 2022, https://arxiv.org/abs/2112.10752) without the adversarial part, which flat drawings do not need.
"""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm.auto import tqdm

from finetune.setup import bf16_is_fast
from scenes import scene

HERE = Path(__file__).resolve().parent
VALIDATION_START = 10_000_000


def on_all_cores(function: Callable[[int], Any], indices: range, description: str) -> list[Any]:
    """`function` of every index, in order."""
    with Pool() as pool:
        return list(tqdm(pool.imap(function, indices, chunksize=32), desc=description, total=len(indices)))


def pixels(index: int, resolution: int, shares: tuple[float, ...]) -> np.ndarray:
    return np.asarray(scene(index, resolution, *shares)[0])


def render(indices: range, resolution: int, *shares: float) -> torch.Tensor:
    """Scenes as one uint8 tensor of shape (len(indices), 3, resolution, resolution); `shares` as `scene` takes them."""
    images = on_all_cores(partial(pixels, resolution=resolution, shares=shares), indices, "Rendering")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device is fast in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))


def to_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float -1..1."""
    return images.float() / 127.5 - 1


def build_vae(channels: tuple[int, ...]) -> AutoencoderKL:
    """A narrow Stable Diffusion autoencoder, initialised so that a flat picture's colour reaches the other end.

    PyTorch's default weights shrink a signal at every convolution and add biases of their own size, which leaves little
    of a colour after thirty layers: with unit gain and no biases the error after 240 steps was 0.19, not 0.32.
    """
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        # Few groups: a group's mean is removed, and the colour of a flat picture is little else than means.
        norm_num_groups=4,
        sample_size=128,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight *= 3**0.5
                module.bias.zero_()
        vae.quant_conv.bias[vae.config.latent_channels :] = -6  # start with hardly any noise on the latents
    return vae


def hatch(images: torch.Tensor) -> torch.Tensor:
    """Pictures with their colours exchanged and parallel strokes of one other colour laid over half of each.

    What is trained on the base later may look like nothing in the scenes: a print's black cuts, a striped cat. An
    autoencoder that never saw strokes cannot carry them.
    """
    batch, _, height, width = images.shape
    device = images.device
    angle, period, across = torch.rand(3, batch, 1, 1, device=device)
    angle, period, across = angle * torch.pi, 3 + 9 * period, across * torch.pi
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    strokes = torch.sin(2 * torch.pi * (x * angle.cos() + y * angle.sin()) / period) > 0.2
    half = (x - width / 2) * across.cos() + (y - height / 2) * across.sin() > 0
    ink = torch.rand(batch, 3, 1, 1, device=device) * 2 - 1
    ink = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, -torch.ones_like(ink), ink)  # often black
    images = images[:, torch.randperm(3)] * (torch.randint(0, 2, (batch, 3, 1, 1), device=device) * 2 - 1)
    return torch.where((strokes & half)[:, None], ink, images)


def random_pieces(bank: torch.Tensor, batch_size: int, whole: bool, device: torch.device) -> torch.Tensor:
    """Scenes in -1..1: whole ones of 128 px, or pieces of 64 px, half of them made small and half cut out.

    A quarter of the batch is hatched.
    """
    images = to_range(bank[torch.randint(len(bank), (batch_size,))].to(device))
    images[: batch_size // 4] = hatch(images[: batch_size // 4])
    if whole:
        return images
    if torch.rand(()) < 0.5:
        return F.avg_pool2d(images, 2)
    top, left = torch.randint(0, 65, (2,)).tolist()
    return images[:, :, top : top + 64, left : left + 64]


def edge_weights(images: torch.Tensor) -> torch.Tensor:
    """How much each pixel's error counts, (batch, 1, height, width): five times as much at most, beside an edge."""
    change = F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1)  # largest minus smallest value around
    return 1 + 4 * change.amax(1, keepdim=True).clamp(max=1)


@torch.no_grad()
def measure(vae: AutoencoderKL, images: torch.Tensor) -> tuple[float, float]:
    """Mean absolute error of the round trip (images in -1..1) and the standard deviation of the latents."""
    errors, latents = [], []
    for batch in to_range(images).to(vae.device).split(32):
        z = vae.encode(batch).latent_dist.mean
        errors.append((vae.decode(z).sample - batch).abs().mean())
        latents.append(z)
    return torch.stack(errors).mean().item(), torch.cat(latents).std().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--kl_weight", type=float, default=1e-4, help="weight of the KL term, a mean over elements")
    parser.add_argument("--images", type=int, default=8000, help="how many scenes to train on")
    parser.add_argument("--icon_share", type=float, default=0.0, help="share of scenes that show an everyday thing")
    parser.add_argument("--print_share", type=float, default=0.0, help="share of scenes that show a print of one")
    parser.add_argument("--channels", type=int, nargs=4, default=(16, 32, 64, 64), help="widths of the four levels")
    parser.add_argument("--resume", type=Path, help="go on from this folder, such as tiny_sd/vae")
    parser.add_argument("--decoder_only", action="store_true", help="leave the latents, and what learnt on them, valid")
    parser.add_argument("--whole_scenes", action="store_true", help="learn at 128 px: slower, and as it is used")
    parser.add_argument("--output_dir", type=Path, default=HERE)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank = render(range(args.images), 128, args.icon_share, args.print_share)
    held_out = render(range(VALIDATION_START, VALIDATION_START + 128), 128, args.icon_share, args.print_share)
    vae = AutoencoderKL.from_pretrained(args.resume) if args.resume else build_vae(tuple(args.channels))
    vae.to(device).train()
    if args.decoder_only:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.1)

    progress = tqdm(range(1, args.steps + 1), desc="Autoencoder")
    for step in progress:
        images = random_pieces(bank, args.batch_size, args.whole_scenes, device)
        with autocast(device):
            posterior = vae.encode(images).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        l1 = (edge_weights(images) * (reconstruction.float() - images).abs()).mean()
        (l1 + args.kl_weight * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            progress.set_postfix(l1=f"{l1.item():.4f}", kl=f"{kl.item():.2f}")
        if step % 500 == 0 or step == args.steps:
            error, std = measure(vae.eval(), held_out)
            vae.train()
            tqdm.write(
                f"step {step}: mean absolute error {error:.4f} at 128 px, standard deviation of latents {std:.3f}"
            )
            if not args.decoder_only:
                vae.register_to_config(scaling_factor=round(1 / std, 5))
            vae.save_pretrained(args.output_dir / "vae")


if __name__ == "__main__":
    main()
