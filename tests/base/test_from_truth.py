"""What the base makes of true pictures with noise on them: the less noise, the nearer it comes."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

pytest.importorskip("resvg_py")

from finetune.model.dtypes import dtype_argument
from processes import BASE
from tiny_sd.measures import from_truth, guesses
from tiny_sd.measures.recognition import recognise
from tiny_sd.training.train_denoiser import encode


def test_with_less_noise_on_a_true_picture_what_is_drawn_comes_nearer_to_it(monkeypatch):
    monkeypatch.setattr(from_truth, "THINGS", 4)
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, **dtype_argument(StableDiffusionPipeline, torch.float32))
    pictures, prompts, shown = from_truth.true_pictures()
    assert all(thing in prompt for thing, prompt in zip(shown, prompts))
    latents = encode(pipeline.vae, pictures, 128).float()
    assert recognise(from_truth.decode(pipeline, latents)) == shown
    found = {start: from_truth.denoise(pipeline, latents, prompts, start) for start in (49, 260, 1000)}
    assert [timestep for _, timestep, _ in found.values()] == [49, 249, 999]
    guesses = [error for *_, error in found.values()]
    away = [(one - latents).square().mean().sqrt().item() for one, *_ in found.values()]
    assert guesses == sorted(guesses) and away == sorted(away)
    assert 0.02 < away[0] < 0.1, "of latents with a deviation of 1"


def test_the_guess_is_better_with_less_noise_and_for_flat_discs_than_for_prints(monkeypatch):
    monkeypatch.setattr(guesses, "SCENES", 8)
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, **dtype_argument(StableDiffusionPipeline, torch.float32))
    discs, prints = (guesses.errors(pipeline, guesses.KINDS[kind], [49, 399]) for kind in ("discs, shapes", "prints"))
    assert discs[0] < discs[1] < 0.2 and prints[0] < prints[1] < 0.4
    assert discs[0] < prints[0] and discs[1] < prints[1]
    with torch.no_grad():
        for parameter in pipeline.unet.conv_out.parameters():
            parameter.zero_()  # which guesses no noise at all
    assert guesses.errors(pipeline, guesses.KINDS["prints"], [399])[0] > 5 * prints[1]
