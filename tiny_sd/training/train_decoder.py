"""Trains the embedded base's decoder on what its denoiser makes of latents (train_denoiser.py comes first).

    PYTHONPATH=. python tiny_sd/training/train_decoder.py
    OMP_NUM_THREADS=1 PYTHONPATH=. torchrun --nproc_per_node 2 -- tiny_sd/training/train_decoder.py

Latents that were sampled are never quite those of a picture: they are off by a tenth of their deviation, however little
noise was left. A decoder that has seen exact latents only shows that as strokes that wobble and small parts that swim.
This one is shown latents whose last noise was taken out by the denoiser, beside the pictures that they came from, and
learns what they stand for. (Zheng et al., 2025, https://arxiv.org/abs/2510.11690, section 4.3, add noise instead.) The
encoder stays as it is, and whatever was trained on its latents remains valid. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from finetune.argument_types import natural_float, positive_float, positive_int
from finetune.devices import pick_device
from finetune.model.dtypes import dtype_argument
from finetune.model.sampler import sampling_scheduler
from finetune.run.progress import progress_bar
from tiny_sd.training.long_run import LongRun, kept
from tiny_sd.training.together import join, rank
from tiny_sd.training.train_denoiser import encode, fingerprint, scenes_and_captions
from tiny_sd.training.train_vae import BASE, SHARES, autocast, doodle_pixels, error_beside_edges, render, to_range
from tiny_sd.training.words import Prompts

SAMPLING_STEPS = 20
LAST_STEPS = 8  # of these at most are taken: from timestep 400, where place and outline are settled, details are not
GUIDANCE = (1.0, 3.0)  # drawn anew for each batch: pictures are drawn with all of these


@torch.no_grad()
def denoised(pipeline: StableDiffusionPipeline, latents: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    """Scaled latents (N, C, side, side) with noise put on and taken out again, as the last steps of sampling do it."""
    found = []
    for scenes in progress_bar(torch.arange(len(latents)).split(64), desc="Denoising"):
        text, no_text = (
            pipeline.text_encoder(ids)[0] for ids in (prompts.draw(scenes), prompts.empty.expand(len(scenes), -1))
        )
        guidance = torch.empty(()).uniform_(*GUIDANCE).item()
        first = SAMPLING_STEPS - int(torch.randint(1, LAST_STEPS + 1, ()))
        scheduler = sampling_scheduler(pipeline.scheduler.config)
        scheduler.set_timesteps(SAMPLING_STEPS, device=latents.device)
        scheduler.set_begin_index(first)
        sample = latents[scenes].float()
        sample = scheduler.add_noise(sample, torch.randn_like(sample), scheduler.timesteps[first : first + 1])
        for timestep in scheduler.timesteps[first:]:
            with autocast(latents.device):
                noise = pipeline.unet(torch.cat([sample] * 2), timestep, torch.cat([text, no_text])).sample.float()
            with_text, without = noise.chunk(2)
            sample = scheduler.step(without + guidance * (with_text - without), timestep, sample).prev_sample
        found.append(sample.half())
    return torch.cat(found)


def pictures_and_latents(pipeline: StableDiffusionPipeline, scenes: int, doodles: int) -> dict[str, torch.Tensor]:
    """uint8 images (scenes + doodles, 3, 128, 128), their exact scaled latents, and of the scenes the denoised ones.

    Doodles are no pictures that the denoiser knows: they keep the decoder good at what only a LoRA will draw.
    """
    images, captions = scenes_and_captions(SHARES, scenes)
    images = torch.cat([images, render(doodle_pixels, range(doodles), 128, "Doodles")])
    exact = encode(pipeline.vae, images, 128)
    prompts = Prompts(pipeline.tokenizer, captions, exact.device)
    return {"images": images, "exact": exact.cpu(), "denoised": denoised(pipeline, exact[:scenes], prompts).cpu()}


def draw_batch(
    bank: dict[str, torch.Tensor], batch_size: int, exact_share: float, noise: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, each with noise of a deviation of its own up to `noise` of the latents', and images in -1..1."""
    chosen = torch.randint(len(bank["images"]), (batch_size,), device=bank["images"].device)
    latents = bank["exact"][chosen].float()
    scenes = (chosen < len(bank["denoised"])) & (torch.rand(batch_size, device=chosen.device) >= exact_share)
    latents[scenes] = bank["denoised"][chosen[scenes]].float()
    size = torch.rand(batch_size, 1, 1, 1, device=chosen.device) * noise
    return latents + size * torch.randn_like(latents), to_range(bank["images"][chosen])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--start", type=Path, default=BASE, help="pipeline folder with the decoder and the denoiser")
    add("--steps", type=positive_int, default=1000)
    add("--seconds", type=positive_float, help="stop after so much time, if it comes before the steps")
    add("--batch_size", type=positive_int, default=8)
    add("--learning_rate", type=positive_float, default=1e-3)
    add("--scenes", type=positive_int, default=8000, help="how many scenes to train on")
    add("--doodles", type=positive_int, default=4000, help="how many doodles to train on")
    add("--exact_share", type=natural_float, default=0.25, help="share of the scenes whose latents are exact")
    add("--noise", type=natural_float, default=0.1, help="largest deviation of noise put on latents, of 1")
    add("--average_over", type=positive_int, default=100, help="steps that the moving average of the weights spans")
    add("--output_dir", type=Path, default=Path("runs/decoder"))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    join()
    torch.manual_seed(0)
    device = pick_device()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    in_float32 = dtype_argument(StableDiffusionPipeline, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(args.start, **in_float32).to(device)
    numbers = (args.scenes, args.doodles)
    made_of = [*numbers, *SHARES, fingerprint(pipeline.unet), fingerprint(pipeline.vae.encoder)]
    bank = kept(args.output_dir / "bank.pt", lambda: pictures_and_latents(pipeline, *numbers), made_of)
    bank = {name: tensor.to(device) for name, tensor in bank.items()}

    vae: AutoencoderKL = pipeline.vae.requires_grad_(False).train()
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    state_file = args.output_dir / "decoder_state.pt"
    run = LongRun(vae, args.learning_rate, args.steps, state_file, average_over=args.average_over, seconds=args.seconds)
    progress = progress_bar(total=args.steps, initial=run.step, desc="Decoder", disable=rank() > 0)
    while not run.done:
        run.start_step()
        latents, images = draw_batch(bank, args.batch_size, args.exact_share, args.noise)
        with autocast(device):
            found = vae.decode(latents / vae.config.scaling_factor).sample
        error = error_beside_edges(found, images)
        run.update(error)
        progress.update()
        if run.step % 20 == 0:
            progress.set_postfix(error=f"{error.item():.4f}")
    run.exchange_average()
    if rank() == 0:
        vae.eval().save_pretrained(args.output_dir / "vae")


if __name__ == "__main__":
    main()
