"""The trainings read their flags before they import what takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from diffusers.optimization import SchedulerType

from finetune.flags import SCHEDULES
from lora.flags import LAYERS
from lora.model import UNET_TARGETS
from processes import ROOT

PROGRAMS = ["task_1_controlnet/train.py", "task_2_lora/train_lora.py", "task_2_lora/train_dreambooth_lora.py"]


@pytest.mark.parametrize("flag, status", [("--help", 0), ("--rank=none", 2)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_are_read_without_pytorch(program, flag, status):
    command = [sys.executable, "-X", "importtime", str(ROOT / program), flag]
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == status, run.stderr
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "finetune.flags" in imported
    assert not imported & {"torch", "diffusers", "transformers", "accelerate", "numpy"}


def test_the_choices_are_those_of_the_libraries_and_the_lora():
    without_flags = {SchedulerType.PIECEWISE_CONSTANT.value, SchedulerType.COSINE_WITH_RESTARTS.value}
    assert set(SCHEDULES) == {kind.value for kind in SchedulerType} - without_flags
    assert LAYERS == list(UNET_TARGETS)
