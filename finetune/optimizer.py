"""The optimiser of all trainings."""

from __future__ import annotations

from typing import Any, Iterable

import torch
from accelerate.utils import is_torch_version


class SetupError(RuntimeError):
    """This machine or installation lacks something; the message says what to do."""


def can_fuse(device: torch.device) -> bool:
    """Whether PyTorch's optimisers update all weights in one kernel there."""
    return device.type == "cuda" or (device.type == "cpu" and is_torch_version(">=", "2.4"))


# Of Stable Diffusion's fine-tunings.
HYPERPARAMETERS: dict[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """All that a checkpoint of the optimiser overwrites with what held when it was written, as it is to be now."""
    for group in optimizer.param_groups:
        group.update(HYPERPARAMETERS, lr=learning_rate, initial_lr=learning_rate)


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, use_8bit_adam: bool, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with the settings of Stable Diffusion's fine-tunings; fused on a CUDA GPU, since PyTorch 2.4 also on a CPU.

    Raises:
        SetupError: if 8-bit Adam is asked for and bitsandbytes is not installed.
    """
    settings = {"lr": learning_rate, **HYPERPARAMETERS}
    if use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise SetupError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
        return AdamW8bit(list(parameters), **settings)
    return torch.optim.AdamW(parameters, fused=can_fuse(device), **settings)
