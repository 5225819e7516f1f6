"""The benchmarks run, and what they count is right."""

from __future__ import annotations

import json
import subprocess
import sys

from diffusers import UNet2DConditionModel
from processes import BASE, ROOT


def run(program: str, *flags: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / program), *flags]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_training_steps_are_timed_and_their_memory_counted(tmp_path):
    flags = ["--recipes", "library", "ours", "--steps", "1", "--rounds", "1", "--batch_size", "2"]
    printed = run("train_step.py", *flags, "--output", str(tmp_path / "figures.json"))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    library, ours = results["library"][0], results["ours"][0]
    assert library["gradients"] == ours["gradients"] and library["optimizer"] >= 2 * library["gradients"]
    assert ours["flops"] < library["flops"], "the encoders are not left out"
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    frozen = 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert ours["weights"] == frozen + ours["gradients"] < library["weights"]
    assert "| ours |" in printed and "| library |" in printed


def test_a_lora_step_holds_hardly_any_gradients(tmp_path):
    flags = ["--task", "lora", "--recipes", "ours", "--steps", "1", "--rounds", "1", "--batch_size", "1"]
    run("train_step.py", *flags, "--output", str(tmp_path / "figures.json"))
    ours = json.loads((tmp_path / "figures.json").read_text())["results"]["ours"][0]
    assert 0 < ours["gradients"] < ours["weights"] / 50


def test_sampling_is_compared_on_equal_images(tmp_path):
    flags = ["--batch_size", "1", "--num_inference_steps", "2", "--repeats", "1"]
    printed = run("sample.py", *flags, "--output", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["largest_difference"] == 0 and len(figures["ratios"]) == 1
    assert "times as fast" in printed
