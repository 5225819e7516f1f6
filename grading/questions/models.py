"""Our models, built of a configuration, and what happens in them: what the answers are computed from.

All of it happens on the meta device, where tensors have shapes and no values; only gradients and factors, which are
values, are computed on the CPU, with small models of as many layers. Runs in the process of `key.py` alone.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Callable, Iterator, Sequence
from unittest.mock import patch

import torch
from torch import nn

import diffusion.controlnet
from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel

from .drawing import HEADS, NORM_GROUPS, TEXT_TOKENS, Configuration

# What a skip connection may come from.
STAGE = re.compile(r"conv_in|down_blocks\.\d+\.(resnets|attentions|downsamplers)\.\d+")
MAX_STEPS = 4


# Layers whose initialisation is nearly half of what a model on the meta device costs, where there is nothing to set.
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


def same_shape(given: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return given.new_empty(given.shape)


def linear_shape(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if given.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"{tuple(given.shape)} does not fit a linear layer of {tuple(weight.shape)}")
    return given.new_empty(*given.shape[:-1], weight.shape[0])


def attention_shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(f"attention of {tuple(query.shape)} to {tuple(key.shape)} and {tuple(value.shape)}")
    return query.new_empty(*query.shape[:-1], value.shape[-1])


# What PyTorch follows through dozens of operations on the meta device, each in Python: four fifths of a call's time.
SHAPES = {
    "gelu": same_shape,
    "group_norm": same_shape,
    "layer_norm": same_shape,
    "linear": linear_shape,
    "silu": same_shape,
    "scaled_dot_product_attention": attention_shape,
}


def between_alike(operation: str) -> Callable[..., torch.Tensor]:
    """A sum or product that is quick for tensors of one shape; of others, and with numbers, it is PyTorch's own."""
    original = getattr(torch.Tensor, operation)

    def function(one: torch.Tensor, other: Any) -> torch.Tensor:
        alike = isinstance(other, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype
        if alike and one.is_meta and other.is_meta:
            return one.new_empty(one.shape)
        return original(one, other)

    return function


OPERATIONS = {name: between_alike(name) for name in ("__add__", "__mul__")}


@contextmanager
def only_shapes(device: str) -> Iterator[None]:
    """Layers are made without values, and functions return tensors of the right shape; only on the meta device."""
    with ExitStack() as stack:
        if device == "meta":
            for layer in LAYERS:
                stack.enter_context(patch.object(layer, "reset_parameters", lambda self: None))
            for name, function in SHAPES.items():
                stack.enter_context(patch.object(nn.functional, name, function))
            for name, function in OPERATIONS.items():
                stack.enter_context(patch.object(torch.Tensor, name, function))
        yield


@dataclass(frozen=True)
class Call:
    """What a module was called with, and what it returned (the first, where it returned several)."""

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: torch.Tensor


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Call]]:
    """The last call of each module in `model`, by its name."""
    calls: dict[str, Call] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            calls[name] = Call(inputs, named, output[0] if isinstance(output, tuple) else output)

        return hook

    modules = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(listen(name), with_kwargs=True) for name, module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counted_zero_convolutions() -> Iterator[list[Any]]:
    """One entry for each call of `zero_convolution`."""
    calls, original = [], diffusion.controlnet.zero_convolution
    diffusion.controlnet.zero_convolution = lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)
    try:
        yield calls
    finally:
        diffusion.controlnet.zero_convolution = original


def position(tensor: torch.Tensor, among: Sequence[torch.Tensor]) -> int:
    """Where this very tensor is."""
    return next(i for i, other in enumerate(among) if other is tensor)


class Models:
    """The UNet and the ControlNet of a configuration, and the tensors of one call of each."""

    def __init__(self, configuration: Configuration, device: str = "meta") -> None:
        self.configuration, self.device = configuration, device
        with counted_zero_convolutions() as calls:
            self.unet, self.controlnet = self.make()
        self.zero_convolutions_made = len(calls)

    def make(self) -> tuple[UNet2DConditionModel, ControlNetModel]:
        with torch.device(self.device), only_shapes(self.device):
            unet = UNet2DConditionModel(**self.configuration.unet_fields())
            return unet, ControlNetModel.from_unet(unet, self.configuration.condition_widths)

    def changed(self, **fields: Any) -> Models:
        """Those of another configuration."""
        return Models(replace(self.configuration, **fields))

    def with_inputs(self, batch: int, height: int, width: int) -> Models:
        """The same models, for other latents."""
        other = copy(self)
        for name in ("inputs", "condition", "controlnet_call", "unet_calls"):
            vars(other).pop(name, None)
        other.configuration = replace(self.configuration, batch=batch, height=height, width=width)
        return other

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device)

    def zero_convolution(self, *arguments: int) -> nn.Module:
        with torch.device(self.device):
            return diffusion.controlnet.zero_convolution(*arguments)

    @staticmethod
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    @staticmethod
    def fails(function: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> bool:
        """Whether shapes do not fit, which PyTorch raises as RuntimeError."""
        try:
            function(tensor)
        except RuntimeError:
            return True
        return False

    # One call of each model

    @cached_property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, timestep and text embeddings."""
        asked = self.configuration
        latents = self.tensor(asked.batch, 4, asked.height, asked.width)
        text = self.tensor(asked.batch, TEXT_TOKENS, asked.cross_attention_dim)
        return latents, torch.zeros(1, device=self.device, dtype=torch.int64), text

    @cached_property
    def condition(self) -> torch.Tensor:
        asked = self.configuration
        return self.tensor(asked.batch, 3, 8 * asked.height, 8 * asked.width)

    @cached_property
    def controlnet_call(self) -> tuple[dict[str, Call], tuple[torch.Tensor, ...], torch.Tensor]:
        with torch.no_grad(), only_shapes(self.device), recorded(self.controlnet) as calls:
            down, mid = self.controlnet(*self.inputs, self.condition, return_dict=False)
        return calls, down, mid

    @property
    def controlnet_calls(self) -> dict[str, Call]:
        return self.controlnet_call[0]

    @property
    def down_residuals(self) -> tuple[torch.Tensor, ...]:
        return self.controlnet_call[1]

    @property
    def mid_residual(self) -> torch.Tensor:
        return self.controlnet_call[2]

    @property
    def features(self) -> list[torch.Tensor]:
        """What each zero convolution is given."""
        names = [f"controlnet_down_blocks.{i}" for i in range(len(self.controlnet.controlnet_down_blocks))]
        return [self.controlnet_calls[name].inputs[0] for name in names]

    @property
    def sources(self) -> list[str | None]:
        """The module that returned each feature; None for the first, which is a sum."""
        made = {id(call.output): name for name, call in self.controlnet_calls.items() if STAGE.fullmatch(name)}
        return [made.get(id(feature)) for feature in self.features]

    @cached_property
    def unet_calls(self) -> dict[str, Call]:
        """Without ControlNet: the skip connections are then the very tensors that the encoder made."""
        with torch.no_grad(), only_shapes(self.device), recorded(self.unet) as calls:
            self.unet(*self.inputs)
        return calls

    @property
    def skips(self) -> list[torch.Tensor]:
        """In the encoder's order: the decoder's blocks are given them from the end."""
        blocks = range(len(self.unet.up_blocks))
        return [skip for j in reversed(blocks) for skip in self.unet_calls[f"up_blocks.{j}"].inputs[1]]

    @property
    def skips_taken(self) -> dict[tuple[int, int], int]:
        """The index of the skip that each layer (up block, layer) takes: each the last that is left."""
        taken, skips = {}, self.skips
        for j, block in enumerate(self.unet.up_blocks):
            given = self.unet_calls[f"up_blocks.{j}"].inputs[1]
            for k in range(len(block.resnets)):
                taken[j, k] = position(given[-1 - k], skips)
        return taken

    @property
    def skip_at_mid_block(self) -> int:
        return position(self.unet_calls["mid_block"].inputs[0], self.skips)

    # Values

    def small(self) -> Configuration:
        """As narrow as it can be, with as many blocks and layers, and no attention in them: what is asked of values is
        the same without."""
        asked = self.configuration
        side = 2**asked.num_blocks
        widths = {"block_out_channels": (NORM_GROUPS,) * asked.num_blocks, "cross_attention_dim": HEADS}
        widths["condition_widths"] = (4,) * len(asked.condition_widths)
        kinds = ("DownBlock2D",) * asked.num_blocks
        return replace(asked, **widths, down_block_types=kinds, batch=1, height=side, width=side)

    def first_gradients(self, names: Sequence[str]) -> list[int]:
        """The training step, from 1, in which each of ControlNet's parameters first has a gradient other than zero."""
        first = train_small(self.small())
        return [first[name] for name in names]

    def residual_factor(self, i: int, conditioning_scale: float) -> float:
        """What guess mode multiplies the residual with, read from a ControlNet whose residuals would all be 1."""
        small = small_with_ones(self.small())
        settings = {"conditioning_scale": conditioning_scale, "guess_mode": True, "return_dict": False}
        with torch.no_grad():
            residuals, _ = small.controlnet(*small.inputs, small.condition, **settings)
        return residuals[i].mean().item()

    def number_of_residuals(self, layers_per_block: int) -> int:
        """With another number of layers; no width changes it."""
        other = small_with_ones(replace(self.small(), layers_per_block=layers_per_block))
        return len(other.controlnet.controlnet_down_blocks)


@lru_cache
def small_with_ones(configuration: Configuration) -> Models:
    """On the CPU, with a ControlNet whose zero convolutions return ones. Pages of the same structure share them."""
    small = Models(configuration, "cpu")
    for module in small.controlnet.controlnet_down_blocks:
        nn.init.ones_(module.bias)
    return small


@lru_cache
def train_small(configuration: Configuration) -> dict[str, int]:
    """Trains a fresh ControlNet on the CPU: the step in which each parameter first has a gradient other than zero."""
    torch.manual_seed(0)
    models = Models(configuration, "cpu")
    models.unet.requires_grad_(False)
    optimizer = torch.optim.SGD(models.controlnet.parameters(), lr=0.1)
    target, first = torch.randn_like(models.inputs[0]), {}
    for step in range(1, MAX_STEPS + 1):
        down, mid = models.controlnet(*models.inputs, models.condition, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        optimizer.zero_grad()
        (models.unet(*models.inputs, **residuals).sample - target).square().mean().backward()
        for name, parameter in models.controlnet.named_parameters():
            if name not in first and parameter.grad is not None and parameter.grad.any():
                first[name] = step
        if len(first) == len(optimizer.param_groups[0]["params"]):
            break
        optimizer.step()
    return first
