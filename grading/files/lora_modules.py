"""The modules of a base model that a LoRA may sit on, and their weights' shapes, from the models' configurations.

Names are diffusers' and transformers', without a leading `text_model.`, which depends on the release.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

Shapes = Mapping[str, "tuple[int, ...]"]

SD_1_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD_1_TEXT_ENCODER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
TINY_SD = Path(__file__).resolve().parents[2] / "tiny_sd"


@dataclass(frozen=True)
class Base:
    """A base model: for `unet` and `text_encoder`, each module that can be adapted with its weight's shape."""

    name: str
    shapes: Mapping[str, Shapes]


def attention_sites(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The names of a UNet's transformers, each with its number of channels."""
    channels = config["block_out_channels"]
    sides = (
        ("down_blocks", config["down_block_types"], channels, config["layers_per_block"]),
        ("up_blocks", config["up_block_types"], channels[::-1], config["layers_per_block"] + 1),
    )
    for side, block_types, side_channels, layers in sides:
        for i, block_type in enumerate(block_types):
            for j in range(layers if block_type.startswith("CrossAttn") else 0):
                yield f"{side}.{i}.attentions.{j}", side_channels[i]
    yield "mid_block.attentions.0", channels[-1]


def resnet_sites(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """The names of a UNet's residual blocks, each with the number of channels that go in and come out."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    for i, own in enumerate(channels):
        for j in range(layers):
            yield f"down_blocks.{i}.resnets.{j}", own if j else channels[max(i - 1, 0)], own
    for j in range(2):
        yield f"mid_block.resnets.{j}", channels[-1], channels[-1]
    upwards = channels[::-1]
    for i, own in enumerate(upwards):
        for j in range(layers + 1):
            below = own if j else upwards[max(i - 1, 0)]
            beside = own if j < layers else upwards[min(i + 1, len(channels) - 1)]
            yield f"up_blocks.{i}.resnets.{j}", below + beside, own


def convolution_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a UNet has beside its transformers."""
    channels = config["block_out_channels"]
    first, time = channels[0], 4 * channels[0]
    shapes: dict[str, tuple[int, ...]] = {
        "conv_in": (first, config.get("in_channels", 4), 3, 3),
        "conv_out": (config.get("out_channels", 4), first, 3, 3),
        "time_embedding.linear_1": (time, first),
        "time_embedding.linear_2": (time, time),
    }
    for site, inputs, outputs in resnet_sites(config):
        shapes[f"{site}.conv1"] = (outputs, inputs, 3, 3)
        shapes[f"{site}.conv2"] = (outputs, outputs, 3, 3)
        shapes[f"{site}.time_emb_proj"] = (outputs, time)
        if inputs != outputs:
            shapes[f"{site}.conv_shortcut"] = (outputs, inputs, 1, 1)
    for i in range(len(channels) - 1):
        down, up = channels[i], channels[-1 - i]
        shapes[f"down_blocks.{i}.downsamplers.0.conv"] = (down, down, 3, 3)
        shapes[f"up_blocks.{i}.upsamplers.0.conv"] = (up, up, 3, 3)
    return shapes


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The linear layers and convolutions of a UNet of Stable Diffusion's kind."""
    text = config["cross_attention_dim"]
    tail = () if config.get("use_linear_projection") else (1, 1)  # the projections are convolutions
    shapes = convolution_shapes(config)
    for site, channels in attention_sites(config):
        for name in ("proj_in", "proj_out"):
            shapes[f"{site}.{name}"] = (channels, channels, *tail)
        for i in range(config.get("transformer_layers_per_block", 1)):
            block = f"{site}.transformer_blocks.{i}"
            for attention, source in (("attn1", channels), ("attn2", text)):
                for name, inputs in (("to_q", channels), ("to_k", source), ("to_v", source), ("to_out.0", channels)):
                    shapes[f"{block}.{attention}.{name}"] = (channels, inputs)
            shapes[f"{block}.ff.net.0.proj"] = (8 * channels, channels)
            shapes[f"{block}.ff.net.2"] = (channels, 4 * channels)
    return shapes


def text_encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The linear layers of CLIP's text encoder."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config["num_hidden_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"encoder.layers.{i}.self_attn.{name}"] = (width, width)
        shapes[f"encoder.layers.{i}.mlp.fc1"] = (inner, width)
        shapes[f"encoder.layers.{i}.mlp.fc2"] = (width, inner)
    return shapes


def base_from(name: str, unet: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> Base:
    return Base(name, {"unet": unet_shapes(unet), "text_encoder": text_encoder_shapes(text_encoder)})


def known_bases(tiny_sd: Path = TINY_SD) -> list[Base]:
    """Stable Diffusion 1.x, and the embedded base where its folder is at hand."""
    bases = [base_from("Stable Diffusion 1.x", SD_1_UNET, SD_1_TEXT_ENCODER)]
    configs = [tiny_sd / part / "config.json" for part in ("unet", "text_encoder")]
    if all(path.is_file() for path in configs):
        bases.append(base_from("tiny_sd", *(json.loads(path.read_text()) for path in configs)))
    return bases
