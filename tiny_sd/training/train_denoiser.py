"""Trains the embedded base's tokenizer, text encoder and UNet on top of its autoencoder (train_vae.py comes first).

    PYTHONPATH=. python tiny_sd/training/train_denoiser.py
    OMP_NUM_THREADS=1 PYTHONPATH=. torchrun --nproc_per_node 2 -- tiny_sd/training/train_denoiser.py

The second is for a CPU with two cores: two processes of one thread see more samples a second than one of two threads.
(Without `--`, torchrun takes `--start` for an option of its own and stops.) Started again, it goes on where it was.

Everything else is latent diffusion as Stable Diffusion 1.4 does it: noise prediction, scaled-linear betas, a tenth of
the prompts empty so that classifier-free guidance works. Two things make it learn on two CPU cores: most samples are
seen at 64 px, where a step costs a quarter (what a word means does not depend on the size), and all timesteps weigh the
same in the loss, however large their errors usually are.
"""

from __future__ import annotations

import argparse
import shutil
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from transformers import CLIPTokenizer

from finetune.argument_types import natural_int, positive_float, positive_int, share
from finetune.devices import pick_device
from finetune.run.progress import progress_bar
from finetune.setup import use_fast_attention
from tiny_sd.pictures.icons import STYLES, load_subjects
from tiny_sd.pictures.scenes import SHAPES, scene
from tiny_sd.training.long_run import LongRun, kept
from tiny_sd.training.networks import build_text_encoder, build_unet, save, start_from, train_tokenizer
from tiny_sd.training.together import join, number_of_processes, rank, wait_for_all
from tiny_sd.training.train_vae import BASE, SHARES, autocast, on_all_cores, to_range
from tiny_sd.training.words import PictureReader, Prompts, learn_words, words_from_pictures


def picture_and_captions(index: int, shares: tuple[float, ...]) -> tuple[np.ndarray, list[str]]:
    image, captions = scene(index, 128, *shares)
    return np.asarray(image), captions


def scenes_and_captions(shares: tuple[float, ...], number: int) -> tuple[torch.Tensor, list[list[str]]]:
    """uint8 pictures (number, 3, 128, 128), and all captions of each."""
    drawn = on_all_cores(partial(picture_and_captions, shares=shares), range(number), "Rendering")
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images, [captions for _, captions in drawn]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor, resolution: int) -> torch.Tensor:
    """uint8 images, made small, to scaled latents of `resolution` / 8, float16 on the autoencoder's device."""
    latents = []
    number = 512 if vae.device.type == "cuda" else 64
    for batch in progress_bar(images.split(number), desc=f"Encoding {resolution} px"):
        small = torch.nn.functional.interpolate(to_range(batch.to(vae.device)), size=resolution, mode="area")
        with autocast(vae.device):
            mean = vae.encode(small).latent_dist.mean
        latents.append((mean * vae.config.scaling_factor).half())
    return torch.cat(latents)


class BalancedError:
    """Divides the squared error of a timestep by what is usual for it, so that all timesteps count the same.

    Where almost all is noise, most of the error is chance (where will the circle be?) and would drown what can be
    learnt at the others. Karras et al., 2023, https://arxiv.org/abs/2312.02696, section 2.2, with running means in the
    place of a learnt function.
    """

    def __init__(self, device: torch.device, bins: int = 20, timesteps: int = 1000) -> None:
        self.width = timesteps // bins
        self.usual = torch.zeros(bins, device=device)

    def __call__(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The loss from the errors of a batch, (batch,), and their timesteps."""
        bins = timesteps // self.width
        count = torch.zeros_like(self.usual).index_add_(0, bins, torch.ones_like(errors))
        mean = torch.zeros_like(self.usual).index_add_(0, bins, errors.detach()) / count.clamp(min=1)
        start = torch.where(self.usual > 0, self.usual, mean)  # a bin's first errors are what is usual so far
        self.usual = mean + (start - mean) * 0.99**count
        return (errors / self.usual[bins]).mean()


def draw_timesteps(number: int, timesteps: int, power: float, device: torch.device) -> torch.Tensor:
    """A power of `number` uniform numbers, one from each of as many equal parts of 0..1, in random order.

    Every batch sees all noise. A power below 1 sees more of much noise, in which it is decided what is where, and which
    is to be learnt first; above 1, more of little noise, in which details are.
    """
    places = (torch.randperm(number, device=device) + torch.rand(number, device=device)) / number
    return (places**power * timesteps).long().clamp(max=timesteps - 1)


def train(
    networks: torch.nn.ModuleDict,
    bank: torch.Tensor,
    prompts: Prompts,
    steps: int,
    batch_size: int,
    learning_rate: float,
    state_file: Path,
    compiled: bool,
    average_over: int,
    timestep_power: float,
    seconds: float | None = None,
) -> None:
    """One stage: trains `networks` on the latents of all scenes and leaves their moving average in them.

    The text encoder is held to what `learn_words` taught it: its pictures go on getting sharper.
    """
    device = bank.device
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    modules = torch.nn.ModuleDict({**networks, "reader": PictureReader(networks["text_encoder"], bank)})
    run = LongRun(
        modules, learning_rate, steps, state_file, average_over=average_over, max_grad_norm=3.0, seconds=seconds
    )
    unet = torch.compile(networks["unet"], dynamic=False) if compiled and not run.done else networks["unet"]
    balanced = BalancedError(device)
    progress = progress_bar(total=steps, initial=run.step, desc=f"{bank.shape[-1] * 8} px", disable=rank() > 0)
    while not run.done:
        run.start_step()
        scenes = torch.randint(len(bank), (batch_size,), device=device)
        latents = bank[scenes].float()
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(batch_size, scheduler.config.num_train_timesteps, timestep_power, device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast(device):
            text = networks["text_encoder"](prompts.draw(scenes))[0]
            predicted = unet(noisy, timesteps, text).sample
            words_error = modules["reader"].error(text, latents)
        error = balanced((predicted.float() - noise).square().mean((1, 2, 3)), timesteps)
        run.update(error + words_error)
        progress.update()
        if run.step % 50 == 0:
            samples = run.step * batch_size * number_of_processes()
            progress.set_postfix(samples=samples, error=f"{balanced.usual.mean().item():.4f}")
    run.exchange_average()


def fingerprint(model: torch.nn.Module) -> float:
    return sum(parameter.cpu().double().abs().sum().item() for parameter in model.parameters())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--steps",
        type=natural_int,
        nargs=3,
        default=(1500, 6000, 12000),
        help="words alone (anew; 0 keeps what --start has of them), 64 px, 128 px",
    )
    add("--batch_size", type=positive_int, nargs=3, default=(128, 64, 32), help="the same, samples a step")
    add("--learning_rate", type=positive_float, nargs=3, default=(1e-3, 2e-3, 1e-3), help="the same, peak")
    add("--seconds", type=positive_float, nargs=2, help="64 px, 128 px: stop after so much time")
    add("--images", type=positive_int, default=30000, help="how many scenes to train on")
    add("--icon_share", type=share, default=SHARES[0], help="share that show an everyday thing")
    add("--print_share", type=share, default=SHARES[1], help="share that show a print of one")
    add("--place_share", type=share, default=SHARES[2], help="share of the things that are in a place")
    add("--pair_share", type=share, default=SHARES[3], help="share of the others that come in pairs")
    add("--vae", type=Path, default=BASE / "vae", help="folder of the autoencoder")
    add("--output_dir", type=Path, default=BASE)
    add("--start", type=Path, help="start from a pipeline folder's weights, such as tiny_sd")
    add("--draw_only", action="store_true", help="draw and keep the pictures, so that a GPU need not wait")
    add("--timestep_power", type=positive_float, default=2 / 3, help="2/3 learns what is where, 3/2 learns details")
    add("--average_over", type=positive_int, default=1000, help="steps that the moving average of the weights spans")
    add("--compile", action="store_true", help="compile the UNet: slow to start, then a third faster")
    return parser.parse_args()


def tokenizer_for(args: argparse.Namespace, captions: list[list[str]]) -> CLIPTokenizer:
    """That of --start, if its words are kept; otherwise one of the captions' words."""
    folder = args.output_dir / "tokenizer"
    if rank() == 0 and args.start and not args.steps[0]:
        shutil.copytree(args.start / "tokenizer", folder, dirs_exist_ok=True)
    elif rank() == 0:
        words = [*SHAPES, *STYLES, *load_subjects().values()] if args.icon_share else list(SHAPES)
        train_tokenizer([c for many in captions for c in many] + words, folder)
    wait_for_all()
    return CLIPTokenizer.from_pretrained(folder)


def networks_to_train(
    start: Path | None, tokenizer: CLIPTokenizer, latent_channels: int, device: torch.device
) -> torch.nn.ModuleDict:
    unet = build_unet(latent_channels)
    networks = torch.nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": unet})
    if start:
        start_from(start, tokenizer, networks)
    networks.to(device)
    networks["unet"].to(memory_format=torch.channels_last)
    use_fast_attention(networks["unet"], device)
    print(f"{sum(p.numel() for p in networks.parameters()) / 1e6:.1f} M parameters on {device}")
    return networks


def main() -> None:
    args = parse_args()
    join()
    torch.manual_seed(0)
    device = pick_device()
    shares = (args.icon_share, args.print_share, args.place_share, args.pair_share)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    made_of = [args.images, *shares]
    images, captions = kept(args.output_dir / "scenes.pt", lambda: scenes_and_captions(shares, args.images), made_of)
    if args.draw_only:
        return
    tokenizer = tokenizer_for(args, captions)
    prompts = Prompts(tokenizer, captions, device)

    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    vae.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
    networks = networks_to_train(args.start, tokenizer, vae.config.latent_channels, device)

    @lru_cache(maxsize=None)
    def latents(resolution: int) -> torch.Tensor:
        file, kind = args.output_dir / f"latents_{resolution}.pt", [*made_of, fingerprint(vae)]
        return kept(file, lambda: encode(vae, images, resolution), kind).to(device)

    words_stage, *stages = zip(args.steps, args.batch_size, args.learning_rate)
    if words_stage[0] and not (args.output_dir / "state_64.pt").is_file():
        networks["text_encoder"] = build_text_encoder(tokenizer).to(device)
        words_from_pictures(networks["text_encoder"], latents(128), prompts)
        learn_words(networks["text_encoder"], latents(128), prompts, *words_stage)
    for resolution, stage, seconds in zip((64, 128), stages, args.seconds or (None, None)):
        if stage[0]:
            state_file = args.output_dir / f"state_{resolution}.pt"
            settings = (args.compile, args.average_over, args.timestep_power, seconds)
            train(networks, latents(resolution), prompts, *stage, state_file, *settings)
    if rank() == 0:
        save(args.output_dir, vae.cpu(), networks["text_encoder"].cpu(), tokenizer, networks["unet"].cpu())


if __name__ == "__main__":
    main()
