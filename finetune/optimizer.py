"""The optimiser of all trainings."""

from __future__ import annotations

from typing import Any, Iterable

import torch

from .devices import can_fuse


class SetupError(RuntimeError):
    """This machine or installation lacks something; the message says what to do."""


# Of Stable Diffusion's fine-tunings.
HYPERPARAMETERS: dict[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """All that a checkpoint of the optimiser overwrites with what held when it was written, as it is to be now."""
    for group in optimizer.param_groups:
        group.update(HYPERPARAMETERS, lr=learning_rate, initial_lr=learning_rate)


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, use_8bit_adam: bool, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with the settings of Stable Diffusion's fine-tunings; fused where PyTorch can.

    Raises:
        SetupError: if 8-bit Adam is asked for and bitsandbytes is not installed, or the device is MPS.
    """
    settings = {"lr": learning_rate, **HYPERPARAMETERS}
    if use_8bit_adam:
        if device.type == "mps":
            raise SetupError("--use_8bit_adam needs bitsandbytes, whose optimisers do not run on MPS: leave it away.")
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise SetupError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
        return AdamW8bit(list(parameters), **settings)
    return torch.optim.AdamW(parameters, fused=can_fuse(device), **settings)
