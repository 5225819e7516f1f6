"""What a training program does before its first step: hardware, precision, optimiser, errors that a person can read."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator

import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.modeling_utils import ModelMixin

from .base import EMBEDDED_BASE, BaseModelError
from .checkpoints import CheckpointError
from .training import NonFiniteLossError


class SetupError(RuntimeError):
    """This machine or installation lacks something; the message says what to do."""


@contextmanager
def fail_clearly() -> Iterator[None]:
    """Ends the program with the message of an error that the user can mend, without a traceback."""
    try:
        yield
    except (SetupError, BaseModelError, CheckpointError, NonFiniteLossError, OSError, ValueError) as error:
        sys.exit(f"\nError: {error}")


def require_hardware(base_model: str) -> None:
    """Raises SetupError if a hub-sized base model is asked for on a machine without a CUDA GPU."""
    if not torch.cuda.is_available() and not Path(base_model).is_dir():
        raise SetupError(
            f"Training {base_model!r} needs a CUDA GPU, and PyTorch {torch.__version__} finds none here.\n"
            f"- With an NVIDIA GPU: check that `nvidia-smi` works and that PyTorch was installed with CUDA.\n"
            f"- Without one: use {EMBEDDED_BASE}."
        )


def place_frozen(model: ModelMixin, accelerator: Accelerator) -> None:
    """Freezes a model on the device, on CUDA in the half precision that was chosen (trained weights stay float32)."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    model.requires_grad_(False)
    model.to(accelerator.device, dtype=half if accelerator.device.type == "cuda" else torch.float32)


def use_fast_attention(model: ModelMixin, device: torch.device) -> None:
    """On a CPU, training with two matrix products is a third faster than with PyTorch's fused attention."""
    if device.type == "cpu":
        model.set_attn_processor(AttnProcessor())


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, use_8bit_adam: bool, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with the settings of Stable Diffusion's fine-tunings; fused where there is a CUDA GPU.

    Raises:
        SetupError: if 8-bit Adam is asked for and bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
    if use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise SetupError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
        return AdamW8bit(list(parameters), **settings)
    return torch.optim.AdamW(parameters, fused=device.type == "cuda", **settings)
