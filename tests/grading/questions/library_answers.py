"""What is right for each question, found without our models.

By running the library's ControlNet and UNet on the CPU, with numbers in them, and by formulas.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Callable

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel

from grading.questions.drawing import TEXT_TOKENS, Configuration


def sums(module: torch.nn.Module, of: Callable[[torch.Tensor], int]) -> dict[str, int]:
    """By the name of each module in it: the sum over the tensors of that module's state."""
    found = dict.fromkeys((name for name, _ in module.named_modules()), 0)
    for name, tensor in module.state_dict().items():
        parts = name.split(".")
        for end in range(len(parts)):
            found[".".join(parts[:end])] += of(tensor)
    return found


class Library:
    """The library's models of a configuration, and what was seen while one image went through them on the CPU."""

    def __init__(self, configuration: Configuration) -> None:
        self.c = c = configuration
        torch.manual_seed(1)
        self.unet = UNet2DConditionModel(**c.unet_fields())
        widths = {"conditioning_embedding_out_channels": c.condition_widths}
        self.controlnet = ControlNetModel.from_unet(self.unet, **widths)
        self.inputs = (torch.randn(1, 4, c.height, c.width), 3, torch.randn(1, TEXT_TOKENS, c.cross_attention_dim))
        with torch.inference_mode():
            self.look_at_controlnet()
            self.look_at_unet()
        self.parameters = {name: tuple(p.shape) for name, p in self.controlnet.named_parameters()}
        self.entries = sums(self.unet, lambda tensor: 1)
        self.sizes = sums(self.controlnet, torch.Tensor.numel)
        self.strides = {n: m.stride[0] for n, m in self.controlnet.named_modules() if isinstance(m, torch.nn.Conv2d)}
        self.missing = len(set(self.controlnet.state_dict()) - set(self.unet.state_dict()))
        del self.unet, self.controlnet, self.inputs

    def batched(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As many images as the page has went through one by one."""
        return (self.c.batch, *shape[1:])

    def look_at_controlnet(self) -> None:
        made: dict[str, torch.Tensor] = {}
        given: list[torch.Tensor] = []
        for name, module in self.controlnet.named_modules():
            if re.fullmatch(r"controlnet_down_blocks\.\d+", name):
                module.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
            elif re.fullmatch(r"down_blocks\.\d\.(resnets|attentions|downsamplers)\.\d", name):
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: made.update(
                        {name: output[0] if isinstance(output, tuple) else output}
                    )
                )
        embedding = self.controlnet.controlnet_cond_embedding
        embedding.conv_out.register_forward_hook(lambda module, inputs, output: setattr(self, "embedded", inputs[0]))
        condition = torch.rand(1, 3, 8 * self.c.height, 8 * self.c.width)
        down, mid = self.controlnet(*self.inputs, condition, return_dict=False)
        self.down, self.mid = [tuple(tensor.shape) for tensor in down], tuple(mid.shape)
        self.sources = [next((n for n, out in made.items() if out is feature), None) for feature in given]
        self.unpadded = tuple(F.conv2d(self.embedded, embedding.conv_out.weight).shape[2:])
        convolutions = list(self.controlnet.controlnet_down_blocks)
        self.misfit = next(i for i, x in enumerate(given) if x.shape[1] != convolutions[i + 1].weight.shape[1])
        del self.embedded

    def look_at_unet(self) -> None:
        skips: list[torch.Tensor] = []
        layers: dict[tuple[int, int], torch.Tensor] = {}
        seen: dict[str, torch.Tensor] = {}
        self.unet.conv_in.register_forward_hook(lambda module, inputs, output: skips.append(output))
        for block in self.unet.down_blocks:
            block.register_forward_hook(lambda module, inputs, output: skips.extend(output[1]))
        for j, block in enumerate(self.unet.up_blocks):
            for k, resnet in enumerate(block.resnets):
                resnet.register_forward_hook(lambda m, inputs, out, place=(j, k): layers.update({place: inputs[0]}))
        self.unet.up_blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(up=output))
        middle = self.unet.mid_block
        middle.register_forward_hook(lambda module, inputs, output: seen.update(into=inputs[0], out=output))
        attention = middle.attentions[0].transformer_blocks[0].attn2
        attention.register_forward_hook(lambda module, inputs, output: seen.update(places=inputs[0]))
        self.unet(*self.inputs)
        self.skips = [tuple(skip.shape) for skip in skips]
        self.layers = {place: tuple(tensor.shape) for place, tensor in layers.items()}
        # By their values: the layer's input ends with the skip connection's channels.
        self.taken = {
            place: next(
                i for i, s in enumerate(skips) if s.shape[2:] == x.shape[2:] and torch.equal(x[:, -s.shape[1] :], s)
            )
            for place, x in layers.items()
        }
        self.before_mid = next(i for i, skip in enumerate(skips) if skip.equal(seen["into"]))
        self.mid_out, self.up_0 = tuple(seen["out"].shape), tuple(seen["up"].shape)
        self.places = seen["places"].shape[1]
        self.unfit = next(i for i, skip in enumerate(skips) if skip.shape != skips[i + 1].shape)


@lru_cache
def library(configuration: Configuration) -> Library:
    return Library(configuration)


@lru_cache
def first_steps(down_block_types: tuple[str, ...], layers: int) -> dict[str, int]:
    """When each parameter of the library's ControlNet first has a gradient, by training it."""
    torch.manual_seed(2)
    n = len(down_block_types)
    small = Configuration((8,) * n, down_block_types, layers, 6, (4,) * 4, 1, 2**n, 2**n)
    unet = UNet2DConditionModel(**{**small.unet_fields(), "norm_num_groups": 4, "attention_head_dim": 2})
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=small.condition_widths)
    unet.requires_grad_(False)
    inputs = (torch.randn(1, 4, 2**n, 2**n), 3, torch.randn(1, 5, 6))
    condition, steps = torch.rand(1, 3, 2 ** (n + 3), 2 ** (n + 3)), {}
    parameters = dict(controlnet.named_parameters())
    for step in (1, 2, 3, 4):
        if len(steps) == len(parameters):
            break
        down, mid = controlnet(*inputs, condition, return_dict=False)
        controlnet.zero_grad()
        unet(*inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample.sum().backward()
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.grad is not None and parameter.grad.count_nonzero():
                    steps.setdefault(name, step)
                    parameter -= 0.1 * parameter.grad
    return steps


def convolution(it: dict[str, Any], **others: Any) -> torch.nn.Conv2d:
    kernel = {"kernel_size": it.get("kernel", 1), "padding": it.get("padding", 0), "stride": it.get("stride", 1)}
    return torch.nn.Conv2d(it["a"], it["b"], **{**kernel, **others})


def halved(side: int, times: int) -> int:
    for _ in range(times):
        side = -(-side // 2)
    return side


def keeping_padding(lib: Library, it: dict[str, Any]) -> int:
    image = torch.zeros(1, it["a"], 9, 9)
    return next(p for p in range(9) if convolution(it, padding=p)(image).shape[2:] == image.shape[2:])


def square(width: int) -> int:
    return width * width + width


def product(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


# By question: what is right, from the library's models and what was drawn.
RIGHT = {
    "zero_parameters": lambda lib, it: it["a"] * it["b"] + it["b"],
    "zero_kernel_parameters": lambda lib, it: it["kernel"] ** 2 * it["a"] * it["b"] + it["b"],
    "zero_output_shape": lambda lib, it: tuple(
        convolution(it)(torch.zeros(it["batch"], it["a"], it["height"], it["width"])).shape
    ),
    "zero_weight_shape": lambda lib, it: tuple(convolution(it).weight.shape),
    "zero_embedding_parameters": lambda lib, it: (9 * lib.c.condition_widths[-1] + 1) * lib.c.block_out_channels[0],
    "zero_number": lambda lib, it: len(lib.skips) + 2,
    "zero_padding": keeping_padding,
    "zero_forgotten_padding": lambda lib, it: lib.unpadded,
    "zero_first_gradients": lambda lib, it: [
        first_steps(lib.c.down_block_types, lib.c.layers_per_block)[name] for name in it["names"]
    ],
    "copy_conv_in_parameters": lambda lib, it: (4 * 9 + 1) * lib.c.block_out_channels[0],
    "copy_time_embedding_parameters": lambda lib, it: (
        (lib.c.block_out_channels[0] + 1 + 4 * lib.c.block_out_channels[0] + 1) * 4 * lib.c.block_out_channels[0]
    ),
    "copy_entries": lambda lib, it: [lib.entries[name] for name in it["names"]],
    "copy_resnet_entries": lambda lib, it: lib.entries[it["name"]],
    "copy_missing_keys": lambda lib, it: lib.missing,
    "copy_weight_shape": lambda lib, it: lib.parameters[it["name"] + ".conv1.weight"],
    "copy_attention_shape": lambda lib, it: lib.parameters[it["name"]],
    "copy_shared": lambda lib, it: lib.sizes[it["name"]],
    "copy_nothing_parameters": lambda lib, it: lib.sizes[f"controlnet_cond_embedding.{it['name']}"],
    "copy_downsampler_shape": lambda lib, it: [
        lib.parameters[it["name"] + ".conv.weight"],
        lib.strides[it["name"] + ".conv"],
    ],
    "features_number": lambda lib, it: len(lib.down),
    "features_shape": lambda lib, it: lib.batched(lib.down[it["i"]]),
    "features_weight_shape": lambda lib, it: (*2 * (lib.down[it["i"]][1],), 1, 1),
    "features_height_index": lambda lib, it: next(i for i, s in enumerate(lib.skips) if s[2] == it["height"]),
    "features_channels": lambda lib, it: [shape[1] for shape in lib.skips],
    "features_parameters": lambda lib, it: square(lib.skips[it["i"]][1]),
    "features_source": lambda lib, it: lib.sources[it["i"]],
    "features_downsampling_index": lambda lib, it: (it["block"] + 1) * (lib.c.layers_per_block + 1),
    "features_shifted": lambda lib, it: lib.misfit,
    "features_bytes": lambda lib, it: torch.zeros(lib.batched(lib.down[it["i"]]), dtype=torch.float16).nbytes,
    "features_guess_mode": lambda lib, it: 10 ** (it["i"] / len(lib.down) - 1) * it["scale"],
    "skips_number": lambda lib, it: [(it["layers"] + 1) * lib.c.num_blocks, len(lib.skips)],
    "skips_indices": lambda lib, it: [i for (j, k), i in sorted(lib.taken.items()) if j == it["j"]],
    "skips_concatenated": lambda lib, it: lib.layers[it["j"], it["k"]][1],
    "skips_taken_by": lambda lib, it: next(
        f"up_blocks.{j}.resnets.{k}" for (j, k), i in lib.taken.items() if i == it["i"]
    ),
    "skips_in_place": lambda lib, it: [lib.before_mid, lib.batched(lib.skips[-1])],
    "skips_shifted": lambda lib, it: lib.unfit,
    "skips_shape": lambda lib, it: lib.batched(lib.skips[it["i"]]),
    "mid_shape": lambda lib, it: lib.batched(lib.mid),
    "mid_image_shape": lambda lib, it: (
        it["batch"],
        lib.c.block_out_channels[-1],
        halved(it["height"] // 8, lib.c.num_blocks - 1),
        halved(it["width"] // 8, lib.c.num_blocks - 1),
    ),
    "mid_concatenated": lambda lib, it: lib.layers[0, 0][1],
    "mid_parameters": lambda lib, it: square(lib.mid_out[1]),
    "mid_sums": lambda lib, it: lib.c.batch * product(lib.mid_out),
    "mid_attention": lambda lib, it: [lib.places, lib.c.cross_attention_dim],
    "mid_added_shape": lambda lib, it: (lib.c.batch, it["channels"], *(halved(side, 1) for side in lib.mid[2:])),
    "mid_bytes": lambda lib, it: torch.zeros(lib.batched(lib.mid)).nbytes,
    "mid_decoder_shape": lambda lib, it: lib.batched(lib.up_0),
}
