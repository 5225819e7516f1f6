"""What is wrong with a TODO (1), the zero convolution, in words, from what `observe.py` saw it do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterator

import torch
import torch.nn.functional as F

from .comparing import all_same, same
from .problems import errors, explain_error, first, kind, number_of, pair_up
from .standins import BATCH, CONVOLUTIONS, Convolution, ConvolutionInputs, gradients


def judge_zero_convolution(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    pairs = pair_up(CONVOLUTIONS, seen["convolutions"])
    made = [one for _, one in pairs]
    problem = errors(made) or first(no_module(one) for one in made) or first(wrong_names(one) for one in made)
    yield "sets `module` to a convolution", problem
    if problem:
        return
    shape = first(wrong_shape(asked, one) for asked, one in pairs)
    yield "has the asked shape, stride and padding", shape
    yield "starts at zero", first(not_zero(one) for one in made)
    yield "is trainable", first(not_trainable(one) for one in made)
    if shape is None:
        yield "computes a convolution", first(not_a_convolution(asked, one, seed) for asked, one in pairs)


def no_module(made: dict[str, Any]) -> str | None:
    if made["is_module"]:
        return None
    if made["module"] is None:
        return "`module` is not set: give the new convolution this name, which the line below the banners returns."
    return f"`module` is of type `{made['module']}`, not a module: ControlNet could neither call nor train it."


def wrong_names(made: dict[str, Any]) -> str | None:
    names = list(made["state"])
    if set(names) == {"weight", "bias"}:
        return None
    if names == ["weight"]:
        return "the convolution has no bias: both weight and bias belong to it, and checkpoints expect both."
    if not names:
        return f"`module`, of type `{made['module']}`, has no weights at all: it must be a convolution."
    return (
        f"the weights are called {number_of([f'`{name}`' for name in names])} in the state dict, not `weight` and "
        f"`bias`: checkpoints could not be exchanged. Set `module` to the convolution itself, without a wrapper."
    )


def wrong_shape(asked: Convolution, made: dict[str, Any]) -> str | None:
    shape = tuple(made["state"]["weight"].shape)
    right = (asked.out_channels, asked.in_channels, asked.kernel_size, asked.kernel_size)
    if shape == (right[1], right[0], *right[2:]) and shape != right:
        return f"`in_channels` and `out_channels` are swapped: {asked} has a weight of shape {shape}, not {right}."
    if shape[:2] == right[:2] and shape != right:
        return f"`kernel_size` is not what was asked for: {asked} has a weight of shape {shape}, not {right}."
    if shape != right or tuple(made["state"]["bias"].shape) != right[:1]:
        return f"{asked} has a weight of shape {shape} and not {right}, or a bias that does not fit."
    if "error" in made["fresh"]:
        return f"what {asked} makes cannot be called on an image: {made['fresh']['error']}."
    output, size = made["fresh"]["output"], asked.output_size()
    if torch.is_tensor(output) and tuple(output.shape) == (BATCH, right[0], size, size):
        return None
    found = tuple(output.shape[2:]) if torch.is_tensor(output) else kind(output)
    return f"{asked} makes of a 9x9 image one of {found}, not {(size, size)}{suspect(asked, found)}."


def suspect(asked: Convolution, found: Any) -> str:
    """A half-sentence about the argument that explains a wrong output size, if one does."""
    half = asked.kernel_size // 2
    suspects = {
        "`stride` is ignored": replace(asked, stride=1),
        "`padding` is ignored": replace(asked, padding=0),
        "`stride` and `padding` are ignored": replace(asked, stride=1, padding=0),
        "`padding` is half of the kernel instead of what was asked for": replace(asked, padding=half),
        "`stride` and `padding` are swapped": replace(asked, stride=asked.padding or 1, padding=asked.stride),
    }
    for description, instead in suspects.items():
        if found == (instead.output_size(),) * 2:
            return f": it looks as if {description}"
    return ""


def not_zero(made: dict[str, Any]) -> str | None:
    for name in ("weight", "bias"):
        values = made["state"][name]
        if not bool((values == 0).all()):
            return (
                f"the {name} does not start at zero (its largest value is {values.abs().max().item():.2g}): a fresh "
                f"ControlNet would disturb the UNet before it has learned anything. Set weight and bias to zero."
            )
    return None


def not_trainable(made: dict[str, Any]) -> str | None:
    for name in ("weight", "bias"):
        if name not in made["trainable"]:
            return f"the {name} is not a parameter, so no optimiser would train it and it would stay zero for ever."
        if not made["trainable"][name]:
            return f"the {name} does not require a gradient, so it is not trained and would stay zero for ever."
    return None


def not_a_convolution(asked: Convolution, made: dict[str, Any], seed: int) -> str | None:
    """Compares with PyTorch's convolution once the zeros are replaced by random values."""
    trained = made["trained"]
    if "error" in trained:
        return explain_error(trained["error"], "once it is trained, the convolution stops with")
    inputs = ConvolutionInputs(asked, seed)
    leaves = [inputs.image, inputs.weight.requires_grad_(), inputs.bias.requires_grad_()]
    output = F.conv2d(*leaves, stride=asked.stride, padding=asked.padding)
    if not same(trained["output"], output):
        return f"once the zeros are trained away, {asked} does not compute a plain convolution with zeros around it."
    if not all_same(trained["gradients"], gradients([output], leaves)) and not not_trainable(made):
        return "the output is right, but the gradients of image, weight and bias are not: it could not be trained."
    return None
