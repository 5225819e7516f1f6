"""The loss is the papers', and what is random at a step depends on nothing but the step."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from finetune.objective import batches_of_indices, diffusion_loss, drop_prompts, seed_for, timestep_weights

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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_drawing_timesteps_by_weight_gives_the_weighted_loss(prediction_type):
    """min-SNR: the mean over all timesteps of min(SNR, gamma) / SNR, or / (SNR + 1), times the error."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1)
    errors = torch.linspace(1, 3, 1000)
    torch.manual_seed(0)
    latents = torch.randn(20_000, 1, 2, 2)

    def predict(noisy, timesteps):
        alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noise = (noisy - alphas.sqrt() * latents) / (1 - alphas).sqrt()
        target = noise if prediction_type == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
        return target + errors[timesteps].sqrt().reshape(-1, 1, 1, 1)

    loss = diffusion_loss(predict, scheduler, latents, 5.0).item()
    assert loss == pytest.approx((weights * errors).mean().item(), rel=0.01)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_schedule_that_ends_without_signal_is_trained_on_by_min_snr(prediction_type):
    """min(SNR, gamma) / SNR is 1 wherever the SNR is below gamma, also where it is 0 (Lin et al., 2023)."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type, rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    torch.manual_seed(0)
    seen = []

    def predict(noisy, timesteps):
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    assert diffusion_loss(predict, scheduler, torch.randn(20_000, 1, 2, 2), 5.0, noise_alone=0.1).isfinite()
    last = timestep_weights(scheduler, 5.0)[-1].item()
    assert last == (1 if prediction_type == "epsilon" else 0)
    assert (seen[0] == 999).float().mean() > 0.09


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_of_a_share_only_noise_is_shown_at_the_last_timestep(prediction_type):
    """The share that was asked for has nothing of its picture, and whoever knows that predicts it without an error."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    latents, seen = torch.full((4000, 1, 4, 4), 100.0), []

    def predict(noisy, timesteps):
        seen.append((noisy, timesteps))
        alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noise = (noisy - alphas.sqrt() * latents) / (1 - alphas).sqrt()
        return noise if prediction_type == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * latents

    for share in (0.0, 0.25):
        torch.manual_seed(0)
        loss = diffusion_loss(predict, scheduler, latents, noise_alone=share)
        assert loss.item() == pytest.approx(0, abs=1e-4)
    (before, timesteps_before), (noisy, timesteps) = seen
    shown = noisy.mean((1, 2, 3)).abs() < 3  # of the others at least 0.068 times 100 is left
    assert not (before.mean((1, 2, 3)).abs() < 3).any()
    assert 0.22 < shown.float().mean() < 0.28 and (timesteps[shown] == 999).all()
    assert noisy[shown].std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(noisy[~shown], before[~shown]) and torch.equal(timesteps[~shown], timesteps_before[~shown])


def test_noise_offset_is_the_same_all_over_a_channel():
    scheduler = DDPMScheduler(**BETAS)
    seen = {}

    def predict(noisy, timesteps):
        alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        seen["noise"] = noisy / (1 - alphas).sqrt()
        return torch.zeros_like(noisy)

    deviations = []
    for offset in (0.0, 0.5):
        torch.manual_seed(0)
        diffusion_loss(predict, scheduler, torch.zeros(64, 4, 16, 16), noise_offset=offset)
        deviations.append(seen["noise"].mean((2, 3)).std().item())
    assert deviations == pytest.approx([1 / 16, (0.5**2 + 1 / 16**2) ** 0.5], rel=0.15)


def test_the_asked_share_of_prompts_is_dropped():
    torch.manual_seed(0)
    text, none = torch.ones(4000, 3, 2), torch.zeros(1, 3, 2)
    dropped = drop_prompts(text, none, 0.3)
    assert set(dropped.mean((1, 2)).tolist()) == {0.0, 1.0}  # whole prompts
    assert 1 - dropped.mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drop_prompts(text, none, 0.0), text)
    assert drop_prompts(torch.ones(8, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long), 1.0).sum() == 0


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
