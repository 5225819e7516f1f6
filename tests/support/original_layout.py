"""Makes one file in the layout of Stable Diffusion's first programs of a folder as diffusers saves it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from export_original import to_original

# Of the autoencoder; `up_blocks` are counted from the other end there.
VAE_NAMES = (
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)", r".down.\1.block.\2"),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0", r".down.\1.downsample"),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)", r".up.\1.block.\2"),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0", r".up.\1.upsample"),
    (r"\.mid_block\.resnets\.0", ".mid.block_1"),
    (r"\.mid_block\.resnets\.1", ".mid.block_2"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def vae_to_original(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    last = len(config["block_out_channels"]) - 1
    renamed = {}
    for name, tensor in weights.items():
        name = re.sub(r"\.up_blocks\.(\d+)", lambda match: f".up_blocks.{last - int(match[1])}", name)
        for own, original in VAE_NAMES:
            name = re.sub(own, original, name)
        if ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # a convolution of 1x1 there
        renamed[f"first_stage_model.{name}"] = tensor
    return renamed


def original_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a model of Stable Diffusion 1's kind, and of what else such files hold: noise levels, places.

    diffusers 0.28 tells by the places which text encoder a file has.
    """
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    text = {name.replace("text_model.", ""): tensor for name, tensor in text_encoder.state_dict().items()}
    places = text["embeddings.position_embedding.weight"]
    return {
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(len(places))[None],
        **to_original(unet.state_dict(), unet.config, "model.diffusion_model."),
        **vae_to_original(vae.state_dict(), vae.config),
        **{f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()},
    }


def open_clip_to_original(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder of Stable Diffusion 2 as OpenCLIP names it, with the last layer, which is not used."""
    own = {name.replace("text_model.", ""): tensor for name, tensor in weights.items()}
    prefix = "cond_stage_model.model."
    width = own["embeddings.token_embedding.weight"].shape[1]
    renamed = {
        f"{prefix}token_embedding.weight": own["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": own["embeddings.position_embedding.weight"],
        f"{prefix}text_projection": torch.zeros(width, width),
    }
    layers = 1 + max(int(match[1]) for match in map(re.compile(r"encoder\.layers\.(\d+)").match, own) if match)
    for kind in ("weight", "bias"):
        renamed[f"{prefix}ln_final.{kind}"] = own[f"final_layer_norm.{kind}"]
        for i in range(layers):
            there, here = f"{prefix}transformer.resblocks.{i}", f"encoder.layers.{i}"
            joined = torch.cat([own[f"{here}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            renamed[f"{there}.attn.in_proj_{kind}"] = joined
            renamed[f"{there}.attn.out_proj.{kind}"] = own[f"{here}.self_attn.out_proj.{kind}"]
            for part, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                renamed[f"{there}.{part}.{kind}"] = own[f"{here}.{name}.{kind}"]
            for part, name in (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                renamed[f"{there}.{part}.{kind}"] = own[f"{here}.{name}.{kind}"]
    return renamed
