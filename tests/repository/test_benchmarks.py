"""The benchmarks run, and what they count is right."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import caching
import checkpoint
import how_much
import models
import quality_runs
import sample
import time_to_quality
from fill50k import RenderedFill50K
from finetune.model.base import BaseModel
from finetune.setup import bf16_is_fast
from models import build_models
from small_bases import small_base
from train_step import RECIPES, Step, measure, table

# Bytes of a frozen weight or an encoding.
SIZE = 2 if bf16_is_fast(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else 4


@pytest.fixture
def small_model(monkeypatch) -> None:
    """A base with fewer layers in place of the embedded one: what takes the time is the number of operations."""
    monkeypatch.setattr(models, "TINY_SD", Path(small_base()))


@pytest.fixture
def few_words(monkeypatch) -> None:
    """Encoders of Stable Diffusion's shapes, but without the 49,408 words that a text encoder draws numbers for."""
    words = len(build_models("tiny_sd").tokenizer)
    monkeypatch.setattr(models, "CLIPTextConfig", partial(models.CLIPTextConfig, vocab_size=words))


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.usefixtures("small_model")
def test_training_steps_are_timed_and_their_memory_counted():
    library, ours = (measure(recipe, "controlnet", "tiny_sd", batch_size=2, steps=1) for recipe in ("library", "ours"))
    assert library["gradients"] == ours["gradients"] and library["optimizer"] >= 2 * library["gradients"]
    assert ours["flops"] < library["flops"], "the encoders are not left out"
    built = build_models("tiny_sd")
    unet, encoders = count(built.unet), count(built.vae) + count(built.text_encoder)
    own_size = SIZE if torch.cuda.is_available() else 4
    assert ours["weights"] == own_size * unet + ours["gradients"], "more than the UNet and what is trained"
    assert library["weights"] == SIZE * (unet + encoders) + library["gradients"]
    twice = {**library, "seconds": 2 * ours["seconds"]}
    assert "| ours | " in table({"library": [twice], "ours": [ours]})
    assert "| 2.00 | " in table({"library": [twice], "ours": [ours]})


@pytest.mark.parametrize("task", ["controlnet", "lora"])
@pytest.mark.usefixtures("small_model")
def test_flops_of_the_recipes_differ_by_the_encoders_alone(task):
    library, ours = (
        Step(RECIPES[name], task, build_models("tiny_sd"), 1).count_flops() for name in ("library", "ours")
    )
    built = build_models("tiny_sd")
    image = torch.zeros(1, 3, built.resolution, built.resolution)
    tokens = torch.zeros(1, built.text_encoder.config.max_position_embeddings, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        built.vae.encode(image), built.text_encoder(tokens)
    assert library - ours == counter.get_total_flops() > 0, "attention is counted in one and not in the other"


def test_a_lora_step_holds_hardly_any_gradients():
    ours = measure("ours", "lora", "tiny_sd", batch_size=1, steps=1)
    assert 0 < ours["gradients"] < ours["weights"] / 50


def start_by_forking(monkeypatch, program) -> None:
    """The processes of a benchmark need not import PyTorch again."""
    if not torch.cuda.is_available():
        fork = multiprocessing.get_context("fork")
        monkeypatch.setattr(program.multiprocessing, "get_context", lambda _: fork)


@pytest.mark.usefixtures("small_model")
def test_sampling_is_compared_on_equal_images(monkeypatch, capsys):
    start_by_forking(monkeypatch, sample)
    flags = ["--batch_size", "1", "--num_inference_steps", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags])
    sample.main()
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["tiny_sd", "sd14"])
@pytest.mark.usefixtures("few_words")
def test_a_cached_run_starts_without_encoding_again(size, tmp_path, monkeypatch):
    encoded = []
    encode = BaseModel.encode_images
    monkeypatch.setattr(
        BaseModel, "encode_images", lambda base, images: encoded.append(len(images)) or encode(base, images)
    )
    for expected in (24, 1):  # at the second start only the last sample, to see that the encodings are the right ones
        encoded.clear()
        caching.prepare(size, 24, 64, tmp_path, batches=1)
        assert sum(encoded) == expected


def test_a_checkpoint_that_is_timed_is_a_whole_one(tmp_path):
    ((waited, whole),) = checkpoint.measure("tiny_sd", tmp_path, repeats=1)
    assert 0 < waited <= whole
    weights = (tmp_path / "checkpoint-1" / "controlnet" / "diffusion_pytorch_model.safetensors").stat().st_size
    averages = (tmp_path / "checkpoint-1" / "optimizer.bin").stat().st_size
    assert averages == pytest.approx(2 * weights, rel=0.05)


@pytest.mark.usefixtures("few_words")
def test_the_size_of_a_cache_is_that_of_its_encodings(monkeypatch):
    start_by_forking(monkeypatch, caching)
    result = caching.measure("sd14", samples=192, resolution=64, batches=1)
    prompts = len({sample.text for sample in map(RenderedFill50K(size=192).render, range(192))})
    numbers = 192 * (4 * 8 * 8) + prompts * (77 * 768)  # latents and text embeddings
    assert SIZE * numbers < result["disk_mib"] * caching.MIB < SIZE * numbers + 192 * 1000
    assert "| 192 | " in caching.table([result])


def run_of(seed: int, seconds: float, reached: bool) -> dict:
    check = {"seconds": seconds, "steps": 50, "iou": 0.91 if reached else 0.4}
    return {"seed": seed, "reached": reached, "steps": 50, "samples": 800, "checks": [check]}


def test_who_did_not_arrive_has_no_time_and_gives_a_bound():
    ours = [run_of(0, 100, True), run_of(1, 200, True), run_of(2, 150, True)]
    arrived = [run_of(0, 1000, True), run_of(1, 1000, True), run_of(2, 3000, True)]
    assert time_to_quality.ratio_in_words(ours, arrived) == "10.0 (5.0 to 20.0)"
    ended = [*arrived[:2], run_of(2, 3000, False)]
    assert time_to_quality.ratio_in_words(ours, ended) == "at least 10.0 (5.0 to 20.0)"
    assert "2 of 3 within 3000" in time_to_quality.row("library", ended, ended)
    assert time_to_quality.ratio_in_words([run_of(0, 1, False)], arrived) == "–"
    assert "| 150 (100 to 200) |" in time_to_quality.row("ours", ours, [])


def test_what_was_measured_with_other_stages_is_not_shown_as_these(tmp_path, monkeypatch, capsys):
    made = []

    def train(args, seed, limit):
        made.append(args.stage)
        return {**run_of(seed, 100, True), "stages": list(args.stage or time_to_quality.OURS)}

    monkeypatch.setattr(time_to_quality, "train_ours", train)
    program = ["time_to_quality.py", "--recipes", "ours", "--seeds", "0", "--output", str(tmp_path / "found.json")]
    stage = ["--stage", "--preset demo --learning_rate 2e-3"]
    for flags in ([], [], [*stage, "--output", str(tmp_path / "other.json")]):
        monkeypatch.setattr(sys, "argv", [*program, *flags])
        time_to_quality.main()
    assert made == [None, stage[1:]], "what is there is not measured again"
    monkeypatch.setattr(sys, "argv", [*program, *stage])
    with pytest.raises(SystemExit, match="runs of 'ours' with other flags than these: name another --output"):
        time_to_quality.main()
    assert time_to_quality.is_other(time_to_quality.parse_args(), "library", {"rate": 1e-3}) is False
    monkeypatch.setattr(sys, "argv", [*program, "--rate", "1e-4"])
    assert time_to_quality.is_other(time_to_quality.parse_args(), "library", {"rate": 1e-3}) is True


def test_all_recipes_are_drawn_alike_when_their_time_is_taken(tmp_path, monkeypatch):
    """The demo's preset has a guidance of its own, with which its pictures score better."""
    for name in ("load_test_data", "generate", "validate", "Training"):  # what is put in their place goes again
        monkeypatch.setattr(quality_runs.train, name, getattr(quality_runs.train, name))
    read = []
    monkeypatch.setattr(quality_runs.train, "main", lambda: read.append(quality_runs.train.parse_args()))
    monkeypatch.setattr(sys, "argv", [])
    settings = {"journal": str(tmp_path / "journal.json"), "conditions": 1, "every": 50}
    quality_runs.train_ours(quality_runs.Journal({**settings, "started": 0.0}), ["--preset", "demo"])
    assert read[0].validation_guidance_scale == quality_runs.DRAWING["guidance_scale"]


def test_rates_that_were_tried_for_fewer_steps_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["time_to_quality.py", "--output", str(tmp_path / "found.json")])
    args, tried = time_to_quality.parse_args(), []

    def train(args, recipe, seed, rate, limit, steps):
        tried.append((rate, steps))
        return {"checks": [{"steps": steps, "iou": 0.3 - rate}]}

    monkeypatch.setattr(time_to_quality, "train_other", train)
    pilots = {str(rate): [{"steps": 2, "iou": rate}] for rate in time_to_quality.RATES}
    for _ in range(2):
        assert time_to_quality.best_rate(args, {"pilots": pilots}) == 1e-5
    assert tried == [(rate, 500) for rate in time_to_quality.RATES]


def test_figures_are_those_of_the_training_as_it_is_now(tmp_path, monkeypatch):
    """A training that went on is drawn again; one that did not is not. How often a sample was seen counts them all."""
    monkeypatch.setattr(how_much, "RUNS", tmp_path)
    folder, ran, steps = tmp_path / "samples-8" / "seed-0", [], 2

    def run(place, command):
        ran.append(command[0])
        file = folder / ("training_options.json" if command[0] == "train.py" else "evaluation/metrics.json")
        if (
            command[0] == "train.py"
            and file.exists()
            and json.loads(file.read_text())["options"]["max_train_steps"] == steps
        ):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        trained = {"options": {"max_train_steps": steps, "train_batch_size": 2}, "samples_per_step": 4}
        drawn = {"held_out": {"mean_iou": steps / 10, "share_above_0.8": 1.0}}
        file.write_text(json.dumps(trained if command[0] == "train.py" else drawn))
        os.utime(file, (len(ran), len(ran)))

    monkeypatch.setattr(how_much, "run", run)
    monkeypatch.setattr(how_much, "SEEDS", (0,))
    for steps in (2, 2, 6):
        row = how_much.by_samples([8], []).splitlines()[-1]
        assert row == f"| 8 | {steps * 4 / 8:.1f} times | 0.{steps}00 (0.{steps}00 to 0.{steps}00) | 100% |"
    assert ran == ["train.py", "evaluate.py", "train.py", "train.py", "evaluate.py"]
