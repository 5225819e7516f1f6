"""The training objective of latent diffusion, and randomness that a resumed run repeats exactly."""

from __future__ import annotations

from typing import Callable, Iterator

import torch
from diffusers import DDPMScheduler


def seed_for(*numbers: int) -> int:
    """Mixes numbers (seed, step, process, ...) into one seed.

    What is random at a step is a function of the step, not of all that was drawn before it: there is no state to save,
    and a run that was killed and resumed draws what it would have drawn.
    """
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed ^ (mixed >> 31)


def batches_of_indices(
    num_samples: int, batch_size: int, seed: int, start: int, process: int = 0, num_processes: int = 1
) -> Iterator[list[int]]:
    """Endless batches for one process: every epoch is a new permutation, and batch `start` can be the first.

    Raises:
        ValueError: if there are no samples.
    """
    if num_samples < 1:
        raise ValueError("The data set is empty.")
    epoch, order = -1, []
    batch = start
    while True:
        first = (batch * num_processes + process) * batch_size
        indices = []
        for position in range(first, first + batch_size):
            if position // num_samples != epoch:
                epoch = position // num_samples
                generator = torch.Generator().manual_seed(seed_for(seed, epoch))
                order = torch.randperm(num_samples, generator=generator).tolist()
            indices.append(order[position % num_samples])
        yield indices
        batch += 1


def diffusion_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """The mean squared error of the predicted noise or velocity at random timesteps.

    Args:
        predict: maps noisy latents and timesteps (batch,) to a prediction of the latents' shape.
        scheduler: its `prediction_type` says what is predicted: `epsilon` (Ho et al., 2020,
            https://arxiv.org/abs/2006.11239, eq. 14) or `v_prediction` (Salimans & Ho, 2022,
            https://arxiv.org/abs/2202.00512, appendix D).
        latents: (batch, channels, height, width).
        snr_gamma: weight the timesteps by min-SNR (Hang et al., 2023, https://arxiv.org/abs/2303.09556).

    Raises:
        ValueError: for another prediction type.
    """
    # Not randn_like: its numbers depend on the memory layout, which differs between cached and fresh latents.
    noise = torch.randn(latents.shape, device=latents.device, dtype=latents.dtype)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, latents.shape[:1], device=latents.device)
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        target = noise
    elif prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        raise ValueError(f"The scheduler's prediction_type is {prediction_type!r}; known: epsilon, v_prediction.")

    error = (predict(noisy_latents, timesteps).float() - target.float()).square().mean((1, 2, 3))
    if snr_gamma is not None:
        alphas = scheduler.alphas_cumprod.to(latents.device)[timesteps]
        snr = alphas / (1 - alphas)
        error = error * snr.clamp(max=snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    return error.mean()
