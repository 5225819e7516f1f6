"""The embedded base can be trained again: its programs run, and what is theirs alone is right."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline

pytest.importorskip("resvg_py")

import train_denoiser

import train_vae
from finetune.colors import COLORS


def run(program, monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [program.__file__, *flags])
    program.main()


def test_the_programs_make_a_pipeline_that_draws(tmp_path, monkeypatch):
    scenes = ("--images", "12", "--icon_share", "0.5", "--print_share", "0.3", "--output_dir", str(tmp_path))
    run(train_vae, monkeypatch, *scenes, "--steps", "2", "--batch_size", "4", "--channels", "8", "8", "8", "8")
    vae = ("--vae", str(tmp_path / "vae"))
    scenes += ("--place_share", "0.5")
    run(train_denoiser, monkeypatch, *scenes, *vae, "--steps", "2", "2", "1", "--batch_size", "4", "4", "2")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cat on a gold background", num_inference_steps=1).images[0].size == (128, 128)
    again = ("--resume", str(tmp_path), "--steps", "0", "0", "1", "--batch_size", "4", "4", "2")
    run(train_denoiser, monkeypatch, *scenes, *vae, *again)


def test_words_are_learnt_as_pictures(tmp_path):
    """After it, one linear layer reads the pictures off the last tokens; before, it does not."""
    torch.manual_seed(0)
    captions = [[f"a {name}"] for name in list(COLORS)[:40]]
    tokenizer = train_denoiser.train_tokenizer([caption for (caption,) in captions], tmp_path)
    text_encoder = train_denoiser.build_text_encoder(tokenizer)
    prompts = train_denoiser.Prompts(tokenizer, captions, torch.device("cpu"))
    bank = torch.randn(40, 4, 8, 8)
    patches = train_denoiser.in_patches(bank).flatten(0, 1)

    def explained() -> float:
        with torch.no_grad():
            tokens = text_encoder(prompts.ids)[0][:, -16:].flatten(0, 1)
        rest = patches - tokens @ torch.linalg.lstsq(tokens, patches).solution
        return 1 - (rest.var() / patches.var()).item()

    before = explained()
    train_denoiser.learn_words(text_encoder, bank, prompts, steps=150, batch_size=40, learning_rate=2e-3)
    assert before < 0.5 and explained() > 0.8


def test_words_for_alike_pictures_begin_alike(tmp_path):
    captions = [["a cat"], ["a lion"], ["a house"], ["a castle"]]
    tokenizer = train_denoiser.train_tokenizer([caption for (caption,) in captions], tmp_path)
    text_encoder = train_denoiser.build_text_encoder(tokenizer)
    prompts = train_denoiser.Prompts(tokenizer, captions, torch.device("cpu"))
    torch.manual_seed(0)
    animal, building = torch.randn(2, 4, 8, 8)
    train_denoiser.words_from_pictures(text_encoder, torch.stack([animal, animal, building, building]), prompts)
    weights = text_encoder.get_input_embeddings().weight
    cat, lion, house, castle = (
        weights[tokenizer.get_vocab()[f"{word}</w>"]] for word in ("cat", "lion", "house", "castle")
    )
    assert torch.cosine_similarity(cat, lion, 0) > 0.95 and torch.cosine_similarity(house, castle, 0) > 0.95
    assert torch.cosine_similarity(cat, house, 0) < 0.5


def test_patches_go_from_left_to_right_and_down():
    latents = torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    patches = train_denoiser.in_patches(latents.expand(1, 4, 8, 8))
    assert patches.shape == (1, 16, 16)
    assert torch.equal(patches[0, :, 0], torch.arange(16.0)) and torch.equal(patches.std(-1), torch.zeros(1, 16))


def test_every_batch_sees_all_noise_and_more_of_much():
    timesteps = train_denoiser.draw_timesteps(1000, 1000, torch.device("cpu"))
    assert timesteps.tolist() != sorted(timesteps.tolist())
    tenths = torch.bincount(timesteps // 100, minlength=10)
    # 1000 * 0.1 ** 1.5 = 31.6 and 1000 * (1 - 0.9 ** 1.5) = 146.2: chance decides only the part at the border.
    assert tenths[0] in (31, 32) and tenths[9] in (146, 147)


def test_timesteps_with_large_errors_count_no_more_than_others():
    balanced = train_denoiser.BalancedError(torch.device("cpu"))
    timesteps = torch.tensor([10, 990])
    for _ in range(200):
        balanced(torch.tensor([0.001, 1.0]), timesteps)
    errors = torch.tensor([0.001, 1.0], requires_grad=True)
    balanced(errors, timesteps).backward()
    small, large = (errors.grad * errors.detach()).tolist()
    assert small == pytest.approx(large, rel=0.05)


def test_hatching_leaves_a_half_and_puts_one_colour_on_the_other():
    torch.manual_seed(0)
    hatched = train_vae.hatch(torch.zeros(8, 3, 64, 64))
    for image in hatched:
        colors, counts = image.flatten(1).unique(dim=1, return_counts=True)
        assert len(counts) == 2 and 0.1 < counts.min() / counts.sum() < 0.4
