"""The loss is the papers', and what is random at a step depends on nothing but the step."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from finetune.objective import batches_of_indices, diffusion_loss, seed_for

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_a_perfect_prediction_costs_nothing_and_another_costs_its_error(prediction_type, snr_gamma):
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    torch.manual_seed(0)
    latents = torch.randn(64, 4, 8, 8)  # enough for timesteps on both sides of gamma
    off = 0.0

    def predict(noisy, timesteps):
        alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noise = (noisy - alphas.sqrt() * latents) / (1 - alphas).sqrt()
        target = noise if prediction_type == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
        return target + off

    assert diffusion_loss(predict, scheduler, latents, snr_gamma).item() == pytest.approx(0, abs=1e-6)
    off = 0.5
    loss = diffusion_loss(predict, scheduler, latents, snr_gamma).item()
    if snr_gamma is None:
        assert loss == pytest.approx(0.25, rel=1e-3)
    else:
        assert 0 < loss < 0.25


def test_unknown_prediction_types_are_refused():
    with pytest.raises(ValueError, match="sample"):
        diffusion_loss(
            lambda noisy, t: noisy, DDPMScheduler(**BETAS, prediction_type="sample"), torch.zeros(1, 4, 8, 8)
        )


def take(number: int, *args, **kwargs) -> list[list[int]]:
    return list(itertools.islice(batches_of_indices(*args, **kwargs), number))


def test_every_epoch_has_every_sample_once_in_another_order():
    first, second = (sum(half, []) for half in (take(5, 10, 2, 0, 0), take(10, 10, 2, 0, 0)[5:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != sum(take(5, 10, 2, 1, 0), [])


def test_starting_later_gives_the_rest():
    assert take(9, 10, 3, 0, 4) == take(13, 10, 3, 0, 0)[4:]


def test_processes_share_what_one_process_with_a_larger_batch_would_see():
    one = take(6, 10, 4, 0, 2)
    two = [take(6, 10, 2, 0, 2, process=p, num_processes=2) for p in range(2)]
    assert [a + b for a, b in zip(*two)] == one


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        next(batches_of_indices(0, 1, 0, 0))


def test_seeds_differ_for_steps_processes_and_seeds():
    seeds = {seed_for(a, b, c) % 2**32 for a in range(5) for b in range(50) for c in range(4)}
    assert len(seeds) == 1000
