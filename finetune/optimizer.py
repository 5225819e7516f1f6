"""The optimiser of all trainings."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import torch

from .devices import can_fuse


class SetupError(RuntimeError):
    """This machine or installation lacks something; the message says what to do."""


# Those of Stable Diffusion's fine-tunings: averages over about 10 gradients and 1,000 squares, and eps, as Kingma & Ba,
# 2015, suggest; decay apart from the gradient (Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101), at
# PyTorch's default.
HYPERPARAMETERS: dict[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}


def parameter_groups(model: torch.nn.Module, lr_ratios: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters, in a group for each ratio of their learning rate to the usual one.

    `lr_ratios` has the ratios of those whose names begin with a key; the others have the usual rate.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ratio = next((ratio for start, ratio in lr_ratios.items() if name.startswith(start)), 1.0)
            groups.setdefault(ratio, []).append(parameter)
    return [{"params": parameters, "lr_ratio": ratio} for ratio, parameters in groups.items()]


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float, lr_ratios: Sequence[float]) -> None:
    """All that a checkpoint of the optimiser overwrites with what held when it was written, as it is to be now.

    `lr_ratios` are those of the groups, in their order: in the groups themselves a checkpoint's would stand.
    """
    for group, ratio in zip(optimizer.param_groups, lr_ratios):
        rate = learning_rate * ratio
        group.update(HYPERPARAMETERS, lr_ratio=ratio, lr=rate, initial_lr=rate)
        # Where the checkpoint comes from, there may be one kernel for all weights; here there may be none.
        if group.get("fused"):
            group["fused"] = optimizer.defaults.get("fused", False)


def eight_bit_adam(device: torch.device) -> type:
    """The class of 8-bit Adam. Raises SetupError if bitsandbytes is not installed, or the device is MPS."""
    if device.type == "mps":
        raise SetupError("--use_8bit_adam needs bitsandbytes, whose optimisers do not run on MPS: leave it away.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise SetupError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
    return AdamW8bit


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
    learning_rate: float,
    use_8bit_adam: bool,
    device: torch.device,
) -> torch.optim.Optimizer:
    """AdamW with the settings of Stable Diffusion's fine-tunings, for parameters or groups of them; fused if possible.

    Raises:
        SetupError: if 8-bit Adam is asked for and bitsandbytes is not installed, or the device is MPS.
    """
    settings = {"lr": learning_rate, **HYPERPARAMETERS}
    if use_8bit_adam:
        # Both averages in a byte each, not in four (Dettmers et al., 2022, https://arxiv.org/abs/2110.02861): weights,
        # gradients and averages of Stable Diffusion's ControlNet take 3.6 GB in place of 5.8.
        return eight_bit_adam(device)(list(parameters), **settings)
    # Fused, all weights in one pass: on a CPU (PyTorch 2.4) 74 images a second in place of 69 (AMX, 2026-11-25).
    return torch.optim.AdamW(parameters, fused=can_fuse(device), **settings)
