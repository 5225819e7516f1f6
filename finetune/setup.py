"""What a training program does before its first step: hardware, precision, processes, errors that a person can read."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.modeling_utils import ModelMixin

from .base import EMBEDDED_BASE, BaseModelError
from .checkpoints import CheckpointError
from .dtypes import cast
from .optimizer import SetupError
from .training import NonFiniteLossError


@contextmanager
def fail_clearly() -> Iterator[None]:
    """Ends the program with the message of an error that the user can mend, without a traceback."""
    try:
        yield
    except (SetupError, BaseModelError, CheckpointError, NonFiniteLossError, OSError, ValueError) as error:
        sys.exit(f"\nError: {without_traceback(error)}")


def without_traceback(error: Exception) -> str:
    """An error's message. What was raised in a worker of a `DataLoader` has a whole traceback in front of it."""
    message = str(error)
    if "Original Traceback" not in message:
        return message
    return re.split(rf"(?m)^(?:\w+\.)*{type(error).__name__}: ", message)[-1].rstrip()


def require_hardware(base_model: str) -> None:
    """Raises SetupError if a hub-sized base model is asked for on a machine without a CUDA GPU."""
    if not torch.cuda.is_available() and not Path(base_model).is_dir():
        raise SetupError(
            f"Training {base_model!r} needs a CUDA GPU, and PyTorch {torch.__version__} finds none here.\n"
            f"- With an NVIDIA GPU: check that `nvidia-smi` works and that PyTorch was installed with CUDA.\n"
            f"- Without one: use {EMBEDDED_BASE}."
        )


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 is what this device computes fastest in; a CPU without the instructions only imitates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def place_frozen(model: ModelMixin, accelerator: Accelerator) -> None:
    """Freezes a model on the device, on CUDA in the half precision that was chosen (trained weights stay float32)."""
    model.requires_grad_(False)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    model.to(accelerator.device)
    if half is not None and accelerator.device.type == "cuda":
        cast(model, half)


def use_fast_attention(model: ModelMixin, device: torch.device) -> None:
    """In bfloat16 on a CPU, training with two matrix products is a third faster than with PyTorch's fused attention."""
    if device.type == "cpu" and bf16_is_fast(device):
        model.set_attn_processor(AttnProcessor())


def start_accelerator(
    output_dir: Path, name: str, mixed_precision: str, gradient_accumulation_steps: int, seed: int
) -> Accelerator:
    """Device, precision and processes; TensorBoard logs under `output_dir/logs/name`; seeded."""
    if mixed_precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        mixed_precision = "bf16" if bf16_is_fast(device) else "no"
    # DeepSpeed's launcher sets it, to its own default or "auto", and accelerate prefers it to the argument below.
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(gradient_accumulation_steps)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    accelerator.init_trackers(name)
    set_seed(seed)
    return accelerator
