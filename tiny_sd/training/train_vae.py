"""Trains the embedded base's autoencoder: images to latents of an eighth of their size, and back.

    PYTHONPATH=. python tiny_sd/training/train_vae.py

Started again, it goes on where it was. The autoencoder is convolutional: it learns on 64 px pieces and serves 128 px.
Objective of latent diffusion (Rombach et al., 2022, https://arxiv.org/abs/2112.10752) without its adversarial part, and
with latents that may be made small (Skorokhodov et al., 2025, https://arxiv.org/abs/2502.14831).
"""

from __future__ import annotations

import argparse
import copy
from contextlib import nullcontext
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, Callable, ContextManager

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from finetune.argument_types import natural_float, number, positive_float, positive_int
from finetune.devices import bf16_is_fast, pick_device
from finetune.run.progress import progress_bar
from tiny_sd.pictures.doodles import doodle
from tiny_sd.pictures.scenes import scene
from tiny_sd.training.long_run import LongRun, kept

BASE = Path(__file__).resolve().parents[1]
VALIDATION_START = 10_000_000
REPORT_EVERY = 1000  # steps
# Of things, of prints, of places among the things, and of pairs among the rest: what the denoiser is shown.
SHARES = (0.5, 0.28, 0.35, 0.35)


def on_all_cores(function: Callable[[int], Any], indices: range, description: str) -> list[Any]:
    """`function` of every index, in order."""
    with Pool() as pool:
        return list(progress_bar(pool.imap(function, indices, chunksize=32), desc=description, total=len(indices)))


def pixels(index: int, resolution: int, shares: tuple[float, ...]) -> np.ndarray:
    return np.asarray(scene(index, resolution, *shares)[0])


def doodle_pixels(index: int, resolution: int) -> np.ndarray:
    return np.asarray(doodle(index, resolution))


def render(draw: Callable[..., np.ndarray], indices: range, resolution: int, description: str) -> torch.Tensor:
    """Pictures as one uint8 tensor of shape (len(indices), 3, resolution, resolution)."""
    images = on_all_cores(partial(draw, resolution=resolution), indices, description)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def draw_pictures(scenes: int, doodles: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What to train on, and what to measure on, by kind; 128 px."""
    draw_scene = partial(pixels, shares=SHARES)
    validation = range(VALIDATION_START, VALIDATION_START + min(128, scenes))
    held_out = {
        "scenes": render(draw_scene, validation, 128, "Held-out scenes"),
        "doodles": render(doodle_pixels, validation, 128, "Held-out doodles"),
    }
    bank = render(draw_scene, range(scenes), 128, "Scenes")
    return torch.cat([bank, render(doodle_pixels, range(doodles), 128, "Doodles")]), held_out


def open_pictures(folder: Path, resolution: int) -> torch.Tensor:
    """The PNG pictures of a folder, as `render` returns them."""
    files = sorted(folder.glob("*.png"))
    images = [Image.open(file).convert("RGB").resize((resolution,) * 2, Image.BOX) for file in files]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def autocast(device: torch.device) -> ContextManager:
    """bfloat16 where the device is fast in it."""
    return torch.autocast(device.type, torch.bfloat16) if bf16_is_fast(device) else nullcontext()


def to_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float -1..1."""
    return images.float() / 127.5 - 1


def build_vae(channels: tuple[int, ...], latent_channels: int) -> AutoencoderKL:
    """A narrow Stable Diffusion autoencoder, initialised so that a flat picture's colour reaches the other end.

    PyTorch's default weights shrink a signal at every convolution and add biases of their own size, which leaves little
    of a colour after thirty layers: with unit gain and no biases the error after 240 steps was 0.19, not 0.32.
    """
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        # Few groups: a group's mean is removed, and the colour of a flat picture is little else than means.
        norm_num_groups=4,
        sample_size=128,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight *= 3**0.5
                module.bias.zero_()
        vae.quant_conv.bias[latent_channels:] = -6  # start with hardly any noise on the latents
    return vae


def random_pieces(bank: torch.Tensor, batch_size: int, whole: bool, device: torch.device) -> torch.Tensor:
    """Pictures in -1..1, half of them with exchanged and inverted colours: whole ones, or pieces of 64 px.

    Of the batches of pieces, a quarter holds whole pictures made small.
    """
    images = to_range(bank[torch.randint(len(bank), (batch_size,), device=bank.device)].to(device))
    signs = torch.randint(0, 2, (batch_size // 2, 3, 1, 1), device=device) * 2 - 1
    images[: batch_size // 2] = images[: batch_size // 2, torch.randperm(3)] * signs
    if whole:
        return images
    if torch.rand(()) < 0.25:
        return F.avg_pool2d(images, 2)
    top, left = torch.randint(0, 65, (2,)).tolist()
    return images[:, :, top : top + 64, left : left + 64]


def edge_weights(images: torch.Tensor) -> torch.Tensor:
    """How much each pixel's error counts, (batch, 1, height, width): five times as much at most, beside an edge."""
    change = F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1)  # largest minus smallest value around
    return 1 + 4 * change.amax(1, keepdim=True).clamp(max=1)


def error_beside_edges(found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (edge_weights(images) * (found.float() - images).abs()).mean()


def autoencoder_loss(vae: AutoencoderKL, images: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the error of the reconstruction in it.

    Half of the latents are also made small and must then give the picture made small: what they hold in fine patterns
    and the picture does not, a denoiser would have to learn and nobody would see (Skorokhodov et al., 2025, eq. 2).
    """
    posterior = vae.encode(images).latent_dist
    latents = posterior.sample()
    reconstruction = vae.decode(latents).sample
    half = len(images) // 2
    small = vae.decode(F.avg_pool2d(latents[:half], 2)).sample
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    error = error_beside_edges(reconstruction, images)
    small_error = error_beside_edges(small, F.avg_pool2d(images[:half], 2))
    return error + 0.25 * small_error + kl_weight * kl, error


@torch.no_grad()
def measure(vae: AutoencoderKL, images: torch.Tensor) -> tuple[float, float, float]:
    """Mean absolute error of the round trip (images in -1..1), deviation of the latents, and that of their noise."""
    errors, latents, noise = [], [], []
    for batch in to_range(images).to(vae.device).split(32):
        posterior = vae.encode(batch).latent_dist
        errors.append((vae.decode(posterior.mean).sample - batch).abs().mean())
        latents.append(posterior.mean)
        noise.append(posterior.std)
    return torch.stack(errors).mean().item(), torch.cat(latents).std().item(), torch.cat(noise).mean().item()


def report(vae: AutoencoderKL, held_out: dict[str, torch.Tensor]) -> str:
    figures = {name: measure(vae, images) for name, images in held_out.items()}
    errors = ", ".join(f"{name} {error:.4f}" for name, (error, *_) in figures.items())
    _, deviation, noise = figures["scenes"]
    return f"mean absolute error: {errors}; deviation of latents {deviation:.3f}, of their noise {noise:.3f}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive_int, default=9000)
    parser.add_argument("--seconds", type=positive_float, help="stop after so much time, if it comes before the steps")
    parser.add_argument("--batch_size", type=number(int, at_least=2), default=16)
    parser.add_argument("--learning_rate", type=positive_float, default=3e-3)
    parser.add_argument(
        "--kl_weight", type=natural_float, default=2e-4, help="weight of the KL term, a mean over elements"
    )
    parser.add_argument("--scenes", type=positive_int, default=8000, help="how many scenes to train on")
    parser.add_argument("--doodles", type=positive_int, default=12000, help="how many doodles to train on")
    parser.add_argument(
        "--channels", type=positive_int, nargs=4, default=(32, 64, 128, 128), help="widths of the four levels"
    )
    parser.add_argument("--latent_channels", type=positive_int, default=16)
    parser.add_argument("--start", type=Path, help="start from this folder's weights, such as tiny_sd/vae")
    parser.add_argument("--decoder_only", action="store_true", help="leave the latents, and what learnt on them, valid")
    parser.add_argument("--whole_pictures", action="store_true", help="learn at 128 px: slower, and as it is used")
    parser.add_argument("--compile", action="store_true", help="compile the training step: slow to start, then faster")
    parser.add_argument(
        "--draw_only", action="store_true", help="draw and keep the pictures, so that a GPU need not wait"
    )
    parser.add_argument("--held_out", type=Path, nargs="*", default=[], help="folders of PNG pictures to measure on")
    parser.add_argument("--output_dir", type=Path, default=BASE)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    device = pick_device()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    numbers = (args.scenes, args.doodles)
    bank, held_out = kept(args.output_dir / "pictures.pt", lambda: draw_pictures(*numbers), [*numbers, *SHARES])
    held_out.update({folder.name: open_pictures(folder, 128) for folder in args.held_out})
    if args.draw_only:
        return
    bank = bank.to(device)

    if args.start:
        vae = AutoencoderKL.from_pretrained(args.start)
    else:
        vae = build_vae(tuple(args.channels), args.latent_channels)
    vae.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
    if args.decoder_only:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
    state_file = args.output_dir / "vae_state.pt"
    run = LongRun(vae.train(), args.learning_rate, args.steps, state_file, seconds=args.seconds)
    loss_of = torch.compile(autoencoder_loss, dynamic=False) if args.compile else autoencoder_loss
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters on {device}")

    progress = progress_bar(total=args.steps, initial=run.step, desc="Autoencoder")
    while not run.done:
        run.start_step()
        images = random_pieces(bank, args.batch_size, args.whole_pictures, device)
        with autocast(device):
            loss, error = loss_of(vae, images, args.kl_weight)
        run.update(loss)
        progress.update()
        if run.step % 20 == 0:
            progress.set_postfix(error=f"{error.item():.4f}")
        if run.step % REPORT_EVERY == 0 or run.done:
            run.exchange_average()
            progress.write(f"step {run.step}: {report(vae.eval(), held_out)}")
            if not args.decoder_only:
                vae.register_to_config(scaling_factor=round(1 / measure(vae, held_out["scenes"])[1], 5))
            # Older releases save nothing else.
            contiguous = copy.deepcopy(vae).to(memory_format=torch.contiguous_format)
            contiguous.save_pretrained(args.output_dir / "vae")
            run.exchange_average()
            vae.train()


if __name__ == "__main__":
    main()
