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
TINY_SD = Path(__file__).resolve().parent.parent / "tiny_sd"


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


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The linear layers, and the projections, of the transformers of a UNet of Stable Diffusion's kind."""
    text = config["cross_attention_dim"]
    tail = () if config.get("use_linear_projection") else (1, 1)  # the projections are convolutions
    shapes: dict[str, tuple[int, ...]] = {}
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
