"""The embedded base can be trained again: its programs run, and what is theirs alone is right."""

from __future__ import annotations

import sys
from functools import partial
from typing import Callable

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

pytest.importorskip("resvg_py")

from finetune.data.colors import COLORS
from processes import ROOT, run_python, run_two
from tiny_sd.pictures.doodles import doodle
from tiny_sd.training import long_run as long_run_module
from tiny_sd.training import networks, train_denoiser, train_vae, words
from tiny_sd.training.long_run import LongRun, kept
from tiny_sd.training.muon import MuonWithAdamW


def run(program, monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [program.__file__, *flags])
    program.main()


def narrow_unet(latent_channels: int, build: Callable = networks.build_unet) -> UNet2DConditionModel:
    """What the program builds, with narrow layers."""
    with torch.device("meta"):
        config = build(latent_channels).config
    return UNet2DConditionModel.from_config({**config, "block_out_channels": (16, 16, 32)})


def test_the_programs_make_a_pipeline_that_draws_and_can_be_gone_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_denoiser, "build_unet", narrow_unet)
    few, small = ("--scenes", "8", "--doodles", "8"), ("--channels", "8", "8", "8", "8", "--latent_channels", "6")
    vae = (*few, *small, "--batch_size", "4", "--output_dir", str(tmp_path))
    run(train_vae, monkeypatch, *vae, "--draw_only")
    assert [file.name for file in tmp_path.iterdir()] == ["pictures.pt"]
    run(train_vae, monkeypatch, *vae, "--steps", "2")
    run(train_vae, monkeypatch, *vae, "--steps", "3")
    assert "Going on from step 2 of 3" in capsys.readouterr().out
    shares = ("--icon_share", "0.5", "--print_share", "0.3", "--place_share", "0.5")
    unet = ("--images", "12", *shares, "--vae", str(tmp_path / "vae"), "--batch_size", "4", "4", "2")
    run(train_denoiser, monkeypatch, *unet, "--steps", "2", "2", "1", "--output_dir", str(tmp_path))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 6
    assert pipeline("a cat on a gold background", num_inference_steps=1).images[0].size == (128, 128)
    again = ("--start", str(tmp_path), "--output_dir", str(tmp_path / "again"), "--steps", "0", "0", "1")
    run(train_denoiser, monkeypatch, *unet, *again)
    assert f"Starting from {tmp_path}\n" in capsys.readouterr().out, "every weight fits"


class Line(torch.nn.Module):
    """One layer of each kind that the optimiser tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = torch.nn.Linear(16, 16), torch.nn.Parameter(torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matrix(x) + self.bias


def long_run(folder, until: int, steps: int = 8) -> list[torch.Tensor]:
    """Weights, and their average, after `until` steps on noise; goes on with what `folder` holds."""
    torch.manual_seed(3)
    model = Line()
    run = LongRun(model, 1e-2, steps, folder / "state.pt")
    while run.step < until:
        run.start_step()
        run.update((model(torch.randn(4, 16)) - 1).square().mean())
    run.save()
    return [tensor.clone() for tensor in (*run.trained, *run.average)]


def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_ends(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = long_run(tmp_path / "whole", 8)
    half = long_run(tmp_path, 4)
    parts = long_run(tmp_path, 8)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts))
    assert not any(torch.equal(one, other) for one, other in zip(half, parts))


def test_a_run_with_so_many_seconds_uses_them_up_and_no_more(tmp_path, monkeypatch):
    """Its rate falls to nothing by then, a kill between does not give it time anew, and compiling is not counted."""
    clock = iter(range(1000))  # it is looked at after each step, after the first for the first time
    monkeypatch.setattr(long_run_module.time, "monotonic", lambda: next(clock))
    rates, steps = [], 0
    for part in (150, 1000):
        model = Line()
        run = LongRun(model, 1e-2, 10**6, tmp_path / "state.pt", seconds=300)
        monkeypatch.setattr(run.optimizer, "step", rates.append)
        while not run.done and part > 0:
            run.update(model(torch.ones(16)).sum())
            part, steps = part - 1, steps + 1
        run.save()
    assert steps == 302, "300 seconds, and a first step of each start"
    assert max(rates) == rates[100] == rates[180] == 1e-2 and rates[-1] < 1e-3


def test_processes_train_together_as_one_that_sees_all_samples(tmp_path):
    """Gradients are averaged, matrices shared out to Muon and gathered, and all stop by the clock of the first."""
    program = ROOT / "tests" / "support" / "wrappers" / "share_of_a_run.py"
    assert run_python(program, "alone.pt", folder=tmp_path).returncode == 0
    said = run_two(program, "together.pt", folder=tmp_path)
    alone, together = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", "together"))
    assert alone["step"] == together["step"] == 7, said
    for name in ("trained", "average"):
        assert all(torch.allclose(*pair, atol=2e-3) for pair in zip(alone[name], together[name]))


def test_what_is_kept_is_made_anew_when_it_was_made_of_something_else(tmp_path):
    made = []

    def make(value: int) -> int:
        made.append(value)
        return value

    asked = [kept(tmp_path / "file.pt", partial(make, value), [value, 0.5]) for value in (1, 1, 2, 2, 1)]
    assert asked == [1, 1, 2, 2, 1] and made == [1, 2, 1]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_matrices_of_a_shape_take_the_steps_that_the_library_takes_one_by_one(memory_format):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(32, 16, 3, 3).to(memory_format=memory_format)) for _ in range(3)]
    ours.append(torch.nn.Parameter(torch.randn(64, 32)))
    theirs = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in ours]
    start = [weight.detach().clone() for weight in theirs]
    library = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    optimizer = MuonWithAdamW(ours, 1e-2)
    for _ in range(3):
        for weight, other in zip(ours, theirs):
            other.grad = torch.randn_like(other)
            weight.grad = (
                other.grad.reshape(weight.shape).to(memory_format=memory_format)
                if weight.dim() == 4
                else other.grad.clone()
            )
        optimizer.step(1e-2)
        library.step()
    for weight, other, before in zip(ours, theirs, start):
        way, expected = weight.detach().flatten(1) - before, other.detach() - before
        assert (way - expected).norm() < 0.05 * expected.norm(), "bfloat16 rounds both"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_turns_every_direction_of_a_convolution_by_the_same(memory_format):
    """The update's singular values are alike, whatever the gradient's were (Jordan et al., 2024)."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 16, 3, 3).to(memory_format=memory_format))
    directions = torch.randn(16, 144) * torch.logspace(0, -1.5, 16)[:, None]
    weight.grad = directions.reshape(16, 16, 3, 3).to(memory_format=memory_format)
    MuonWithAdamW([weight], 1e-3).step(1e-2)
    sizes = torch.linalg.svdvals(weight.detach().reshape(16, 144))
    assert sizes.max() / sizes.min() < 2.5 and torch.linalg.cond(directions) > 20


def test_doodles_are_functions_of_their_number_and_show_many_things():
    one, again, other = (np.asarray(doodle(i, 64), float) for i in (5, 5, 6))
    assert np.array_equal(one, again) and np.abs(one - other).mean() > 10
    edges = [np.abs(np.diff(np.asarray(doodle(i, 64), float), axis=0)).mean() for i in range(20)]
    assert np.mean(edges) > 5


def test_words_are_learnt_as_pictures(tmp_path):
    """After it, one linear layer reads the pictures off the last tokens; before, it does not."""
    torch.manual_seed(0)
    captions = [[f"a {name}"] for name in list(COLORS)[:24]]
    tokenizer = networks.train_tokenizer([caption for (caption,) in captions], tmp_path)
    config = networks.build_text_encoder(tokenizer).config
    config.update({"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1})  # a tenth of the time
    text_encoder = CLIPTextModel(config)
    prompts = words.Prompts(tokenizer, captions, torch.device("cpu"))
    bank = torch.randn(24, 4, 8, 8)
    patches = words.in_patches(bank).flatten(0, 1)

    def explained() -> float:
        with torch.no_grad():
            tokens = text_encoder(prompts.ids)[0][:, -16:].flatten(0, 1)
        rest = patches - tokens @ torch.linalg.lstsq(tokens, patches).solution
        return 1 - (rest.var() / patches.var()).item()

    before = explained()
    words.learn_words(text_encoder, bank, prompts, steps=150, batch_size=24, learning_rate=8e-3)
    assert before < 0.5 and explained() > 0.8


def test_words_for_alike_pictures_begin_alike(tmp_path):
    captions = [["a cat"], ["a lion"], ["a house"], ["a castle"]]
    tokenizer = networks.train_tokenizer([caption for (caption,) in captions], tmp_path)
    text_encoder = networks.build_text_encoder(tokenizer)
    prompts = words.Prompts(tokenizer, captions, torch.device("cpu"))
    torch.manual_seed(0)
    animal, building = torch.randn(2, 4, 8, 8)
    words.words_from_pictures(text_encoder, torch.stack([animal, animal, building, building]), prompts)
    weights = text_encoder.get_input_embeddings().weight
    cat, lion, house, castle = (
        weights[tokenizer.get_vocab()[f"{word}</w>"]] for word in ("cat", "lion", "house", "castle")
    )
    assert torch.cosine_similarity(cat, lion, 0) > 0.95 and torch.cosine_similarity(house, castle, 0) > 0.95
    assert torch.cosine_similarity(cat, house, 0) < 0.5


def test_patches_go_from_left_to_right_and_down():
    latents = torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    patches = words.in_patches(latents.expand(1, 4, 8, 8))
    assert patches.shape == (1, 16, 16)
    assert torch.equal(patches[0, :, 0], torch.arange(16.0)) and torch.equal(patches.std(-1), torch.zeros(1, 16))


@pytest.mark.parametrize("power, first, last", [(2 / 3, (31, 32), (146, 147)), (1.5, (215, 216), (67, 68))])
def test_every_batch_sees_all_noise_and_more_of_that_which_is_asked_for(power, first, last):
    timesteps = train_denoiser.draw_timesteps(1000, 1000, power, torch.device("cpu"))
    assert timesteps.tolist() != sorted(timesteps.tolist())
    tenths = torch.bincount(timesteps // 100, minlength=10)
    # 1000 * 0.1 ** (1 / power) and 1000 * (1 - 0.9 ** (1 / power)): chance decides only the part at the border.
    assert tenths[0] in first and tenths[9] in last


def test_timesteps_with_large_errors_count_no_more_than_others():
    balanced = train_denoiser.BalancedError(torch.device("cpu"))
    timesteps = torch.tensor([10, 990])
    for _ in range(200):
        balanced(torch.tensor([0.001, 1.0]), timesteps)
    errors = torch.tensor([0.001, 1.0], requires_grad=True)
    balanced(errors, timesteps).backward()
    small, large = (errors.grad * errors.detach()).tolist()
    assert small == pytest.approx(large, rel=0.05)
