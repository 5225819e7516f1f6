"""The simulated memory of a training step is that which PyTorch allocates, and which a GPU was seen to take."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import models
from finetune.setup import bf16_is_fast
from memory import GIB, eight_bit_bytes, simulate, table
from models import build_models
from recipes import OURS
from small_bases import small_base
from train_step import Step, held_bytes

PRECISIONS = ["no", *(["bf16"] if bf16_is_fast(torch.device("cpu")) else [])]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    """What is compared is a step on a CPU, also where there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def small_model(monkeypatch) -> None:
    """A base with fewer layers in place of the embedded one: what takes the time is the number of operations."""
    monkeypatch.setattr(models, "TINY_SD", Path(small_base()))


def allocated_peak(folder: Path, task: str, precision: str, batch_size: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes that PyTorch's allocator gave out on top of what was there before a step, at most; and what was there."""
    step = Step(replace(OURS, precision=precision, checkpointing=checkpointing), task, build_models("tiny_sd"), 1)
    step.prepare_data(batch_size)
    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    live = peak = 0
    for event in events:
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    held = held_bytes(step)
    inputs = sum(t.numel() * t.element_size() for t in (step.latents, step.text, step.pixels, step.tokens))
    return peak, int(held["weights"] + held["optimizer"]) + inputs


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("task", ["controlnet", "lora"])
@pytest.mark.usefixtures("small_model")
def test_the_simulation_is_what_is_allocated(tmp_path, task, checkpointing, precision):
    rise, held = allocated_peak(tmp_path, task, precision, 4, checkpointing)
    simulated = simulate(task, "tiny_sd", 4, precision, checkpointing, like_cuda=False)
    assert simulated["before"] == pytest.approx(held, rel=0.05)
    assert simulated["peak"] - simulated["before"] == pytest.approx(rise, rel=0.05)


# GiB at Stable Diffusion 1.4's size and 512 px in bf16, as `gpu_rows.py` measured them on an H200.
MEASURED = [("lora", 4, False, 6.05), ("controlnet", 4, True, 7.89)]


@pytest.mark.parametrize("task, batch_size, checkpointing, measured", MEASURED)
def test_the_simulation_is_what_a_gpu_took(task, batch_size, checkpointing, measured):
    found = simulate(task, "sd14", batch_size, "bf16", checkpointing)
    assert found["peak"] / GIB == pytest.approx(measured, rel=0.05)
    assert found["peak"] / GIB < measured, "workspace is not simulated"
    expected_weights = 859_520_964 * 2 + (361_279_120 * 4 if task == "controlnet" else 0)
    assert found["weights"] == pytest.approx(expected_weights, rel=0.01)


@pytest.mark.usefixtures("small_model")
def test_half_precision_is_half_precision_and_a_table_has_a_line_for_each():
    rows = [simulate("lora", "tiny_sd", 1, precision, False) for precision in ("no", "bf16")]
    whole, half = (row["peak"] for row in rows)
    assert half < 0.8 * whole
    assert [f"| lora | {name} | 1 | off |" in table(rows) for name in ("no", "bf16")] == [True] * 2


def test_eight_bit_averages_are_a_quarter_and_their_scales():
    assert eight_bit_bytes([1 << 20]) == 2 * ((1 << 20) + 4 * 4096)
    assert eight_bit_bytes([100]) == 2 * 4 * 100, "small ones stay float32"
