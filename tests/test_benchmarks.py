"""The benchmarks run, and what they count is right."""

from __future__ import annotations

import sys

import pytest
from diffusers import UNet2DConditionModel
from processes import BASE

import caching
import checkpoint
import sample
from finetune.base import BaseModel
from train_step import measure, table


def test_training_steps_are_timed_and_their_memory_counted():
    library, ours = (measure(recipe, "controlnet", "tiny_sd", batch_size=2, steps=1) for recipe in ("library", "ours"))
    assert library["gradients"] == ours["gradients"] and library["optimizer"] >= 2 * library["gradients"]
    assert ours["flops"] < library["flops"], "the encoders are not left out"
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    frozen = 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert ours["weights"] == frozen + ours["gradients"] < library["weights"]
    twice = {**library, "seconds": 2 * ours["seconds"]}
    assert "| ours | " in table({"library": [twice], "ours": [ours]})
    assert "| 2.00 | " in table({"library": [twice], "ours": [ours]})


def test_a_lora_step_holds_hardly_any_gradients():
    ours = measure("ours", "lora", "tiny_sd", batch_size=1, steps=1)
    assert 0 < ours["gradients"] < ours["weights"] / 50


def test_sampling_is_compared_on_equal_images(monkeypatch, capsys):
    flags = ["--batch_size", "1", "--num_inference_steps", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags])
    sample.main()
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["tiny_sd", "sd14"])
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


def test_the_size_of_a_cache_is_that_of_its_encodings():
    result = caching.measure(samples=192, resolution=64)
    latents, prompt = 4 * 8 * 8 * 4, 32 * 192 * 4  # bytes in float32
    assert 192 * latents < result["disk_mib"] * caching.MIB < 192 * (latents + prompt + 1000)
    assert "| 192 | " in caching.table([result])
