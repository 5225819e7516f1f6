"""What the five places are given to work with: small tensors and models, made from a seed.

Whoever runs a text and whoever judges what it did make them from the same seed, each for itself. So nothing that the
text does can change what its results are compared with.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import IO, Any, Sequence

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from torch import nn

IMAGE_SIZE = 9
BATCH = 2
# Widths and sizes of the skip connections. "alike": any can be taken for any other without an error, so that a mix-up
# shows in the values. "as in Stable Diffusion": twelve of them, which get wider and smaller.
LAYOUTS = {
    "alike": ((8, 4),) * 6,
    "as in Stable Diffusion": ((4, 16),) * 3 + ((4, 8),) + ((8, 8),) * 2 + ((8, 4),) + ((16, 4),) * 2 + ((16, 2),) * 3,
}
# The configurations that have these skip connections.
CONFIGS = {
    "alike": FrozenDict(block_out_channels=(8, 8), layers_per_block=2),
    "as in Stable Diffusion": FrozenDict(block_out_channels=(4, 8, 16, 16), layers_per_block=2),
}
# Five blocks, where the embedded base has three and Stable Diffusion four: a copy of so many by number is partial here.
ENCODER = {
    "block_out_channels": (16, 32, 16, 24, 16),
    "down_block_types": ("CrossAttnDownBlock2D", *("DownBlock2D",) * 4),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
# Weights that another name hides, as a LoRA does, one in each module that ControlNet copies.
MISFITS = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
)


@dataclass(frozen=True)
class Convolution:
    """What a zero convolution can be asked for."""

    in_channels: int
    out_channels: int
    kernel_size: int = 1
    stride: int = 1
    padding: int = 0

    def output_size(self) -> int:
        return (IMAGE_SIZE + 2 * self.padding - self.kernel_size) // self.stride + 1

    def __str__(self) -> str:
        return (
            f"zero_convolution({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding})"
        )


# The plain one, the one of the condition's embedding, and two that leave none of the arguments at its default.
CONVOLUTIONS = (
    Convolution(5, 7),
    Convolution(4, 6, kernel_size=3, padding=1),
    Convolution(6, 3, kernel_size=3, stride=2, padding=1),
    Convolution(3, 5, kernel_size=4, stride=3, padding=2),
    Convolution(4, 4, kernel_size=5),
)


def random_source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_image(channels: int, size: int, source: torch.Generator) -> torch.Tensor:
    return torch.randn(BATCH, channels, size, size, generator=source)


def randomise(module: nn.Module, source: torch.Generator) -> None:
    """Gives every weight a value of its own, so that none can be taken for another."""
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=source)


def gradients(outputs: Sequence[Any], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Of the sum of the outputs' squares, for each of the leaves; None where no gradient arrives."""
    usable = [output for output in outputs if torch.is_tensor(output) and output.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not usable or not wanted:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad(sum(output.square().sum() for output in usable), wanted, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


class ConvolutionInputs:
    """For TODO (1): an image, and the weight and bias that take the zeros' place."""

    def __init__(self, asked: Convolution, seed: int) -> None:
        source = random_source(seed)
        self.image = random_image(asked.in_channels, IMAGE_SIZE, source).requires_grad_()
        size = (asked.out_channels, asked.in_channels, asked.kernel_size, asked.kernel_size)
        self.weight = torch.randn(size, generator=source)
        self.bias = torch.randn(asked.out_channels, generator=source)


@lru_cache(maxsize=4)
def original_models(seed: int) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """For TODO (2): a UNet and the ControlNet that was just built from its configuration, all weights random but for
    ControlNet's zero convolutions.

    These are not for the student's code, which gets `fresh_models`.
    """
    with torch.random.fork_rng(devices=[]):
        up_block_types = (*("UpBlock2D",) * 4, "CrossAttnUpBlock2D")
        unet = UNet2DConditionModel(sample_size=16, up_block_types=up_block_types, **ENCODER)
        controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 8, 8, 8), **ENCODER)
    source = random_source(seed)
    for model in (unet, controlnet):
        randomise(model, source)
        for block in model.down_blocks:
            if not hasattr(block, "attentions"):
                block.attentions = None  # as in the repository's DownBlock2D
    for name, weights in controlnet.state_dict().items():
        if name.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
            weights.zero_()
    unet.num_skips = len(controlnet.controlnet_down_blocks)  # as in the repository's UNet
    return unet, controlnet


@lru_cache(maxsize=4)
def original_states(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of `original_models`, by name."""
    unet, controlnet = original_models(seed)
    return unet.state_dict(), controlnet.state_dict()


class Packer(pickle.Pickler):
    """Packs modules, and keeps their tensors and functions aside in `kept`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.kept: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, (torch.Tensor, FunctionType)):
            return None
        self.kept.append(value)
        return len(self.kept) - 1


class Unpacker(pickle.Unpickler):
    """What `Packer` packed, with tensors of its own."""

    def __init__(self, file: IO[bytes], kept: Sequence[Any]) -> None:
        super().__init__(file)
        self.kept = kept

    def persistent_load(self, number: int) -> Any:
        kept = self.kept[number]
        if type(kept) is nn.Parameter:  # as below, in half the time
            return nn.Parameter(kept.detach().clone(), kept.requires_grad)
        return copy.deepcopy(kept)  # of a function, that is the function itself


@lru_cache(maxsize=4)
def packed_models(seed: int) -> tuple[bytes, list[Any]]:
    file = io.BytesIO()
    packer = Packer(file)
    packer.dump(original_models(seed))
    return file.getvalue(), packer.kept


def fresh_models(seed: int) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """What `deepcopy` would make of the original ones, which takes several times as long: it copies the ten empty
    dictionaries of hooks that every module has one by one."""
    packed, kept = packed_models(seed)
    return Unpacker(io.BytesIO(packed), kept).load()


class Hidden(nn.Module):
    """A layer whose weights have another name, as those under a LoRA have."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_layer(*args, **kwargs)


def hide(model: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    layer = model.get_submodule(parent)
    setattr(layer, name, Hidden(getattr(layer, name)))


def with_surface(model: nn.Module, layout: str) -> None:
    """Gives a stand-in what else `self` has there, for texts that ask for it."""
    model.config, model.dtype, model.device = CONFIGS[layout], torch.float32, torch.device("cpu")
    model.down_blocks = nn.ModuleList(nn.Identity() for _ in model.config.block_out_channels)
    model.mid_block = nn.Identity()


class ControlNetEnd(nn.Module):
    """For TODO (3): ControlNet where its encoder and mid block are done; zero convolutions that are not zero any more.

    `skips` are the encoder's features, `sample` is what the mid block made. `leaves` are what gradients arrive at.
    """

    def __init__(self, layout: str, seed: int) -> None:
        super().__init__()
        source = random_source(seed)
        with_surface(self, layout)
        channels = [width for width, _ in LAYOUTS[layout]]
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in channels)
        self.controlnet_mid_block = nn.Conv2d(channels[-1], channels[-1], 1)
        randomise(self, source)
        images = [random_image(*shape, source).requires_grad_() for shape in LAYOUTS[layout]]
        images.append(random_image(*LAYOUTS[layout][-1], source).requires_grad_())
        self.leaves = [*images, *self.parameters()]
        *skips, self.sample = [image * 1.0 for image in images]
        self.skips = tuple(skips)


class UNetMiddle:
    """For TODO (4-1) and (4-2): the UNet's skip connections, its mid block's output, and ControlNet's residuals.

    `leaves` are what gradients arrive at: first the skips' residuals, then the mid block's.
    """

    def __init__(self, layout: str, seed: int) -> None:
        source = random_source(seed)
        shapes = LAYOUTS[layout]
        self.skips = tuple(random_image(*shape, source) for shape in shapes)
        self.mid_sample = random_image(*shapes[-1], source)
        self.leaves = [random_image(*shape, source).requires_grad_() for shape in (*shapes, shapes[-1])]
        *residuals, self.mid_residual = [leaf * 1.0 for leaf in self.leaves]
        self.residuals = tuple(residuals)
        self.emb, self.encoder_hidden_states = torch.randn(BATCH, 8, generator=source), random_image(3, 8, source)
        self.unet = nn.Module()
        with_surface(self.unet, layout)
        self.unet.num_skips = len(shapes)

    def names(self, controlled: bool) -> dict[str, Any]:
        """What else `forward` has in scope, and needs after the places as it is, with ControlNet or without."""
        return {
            "is_controlnet": controlled,
            "mid_block_additional_residual": self.mid_residual if controlled else None,
            "emb": self.emb,
            "encoder_hidden_states": self.encoder_hidden_states,
            "cross_attention_kwargs": None,
            "return_dict": True,
        }
