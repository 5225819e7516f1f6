"""What a training program does before its first step: hardware, precision, optimiser, errors that a person can read."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator

import torch
from accelerate import Accelerator

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


def weight_dtype(accelerator: Accelerator) -> torch.dtype:
    """The precision that frozen weights are kept in; trained ones are always float32."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


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
