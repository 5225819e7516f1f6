"""The models that the benchmarks time, at the embedded base's size or Stable Diffusion 1.4's, without a download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune import devices
from finetune.devices import pick_device
from finetune.model.base import BaseModel, load_part

ROOT = Path(__file__).resolve().parent.parent
TINY_SD = ROOT / "tiny_sd"


@dataclass
class Models:
    """The library's models in float32: the embedded base's on the CPU; random weights are made where they are used."""

    resolution: int
    unet: diffusers.UNet2DConditionModel
    controlnet: diffusers.ControlNetModel
    vae: diffusers.AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: diffusers.DDPMScheduler


def sd14_configs() -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """UNet, VAE and text encoder of Stable Diffusion 1.4, as its published configuration files give them."""
    unet = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    vae = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    return unet, vae, text


def tiny_sd_configs() -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """The same of the embedded base."""
    unet, vae = (json.loads((TINY_SD / part / "config.json").read_text()) for part in ("unet", "vae"))
    return unet, vae, CLIPTextConfig.from_pretrained(str(TINY_SD), subfolder="text_encoder")


def build_models(size: str, random_weights: bool = False) -> Models:
    """Models of the size `tiny_sd` (the embedded base's weights, if not asked for random ones) or `sd14` (random)."""
    torch.manual_seed(0)
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    tokenizer = CLIPTokenizer.from_pretrained(TINY_SD, subfolder="tokenizer")
    condition_channels = (8, 16, 32, 64) if size == "tiny_sd" else (16, 32, 96, 256)
    if size == "tiny_sd" and not random_weights:
        unet = load_part(diffusers.UNet2DConditionModel, str(TINY_SD), "unet")
        vae = load_part(diffusers.AutoencoderKL, str(TINY_SD), "vae")
        text_encoder = load_part(CLIPTextModel, str(TINY_SD), "text_encoder")
    else:
        unet_config, vae_config, text_config = tiny_sd_configs() if size == "tiny_sd" else sd14_configs()
        with pick_device():  # a CPU would draw a billion random numbers for a minute
            unet = diffusers.UNet2DConditionModel.from_config(unet_config)
            vae = diffusers.AutoencoderKL.from_config(vae_config)
            text_encoder = CLIPTextModel(text_config)
    with unet.device:
        controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=condition_channels)
    for convolution in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        torch.nn.init.normal_(convolution.weight, std=0.01)  # a trained one's are not zero
    return Models(
        resolution=unet.config.sample_size * 8,
        unet=unet,
        controlnet=controlnet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
    )


def build_base(size: str) -> BaseModel:
    """The embedded base, `tiny_sd`; or for `sd14` encoders with random weights that are narrow, but whose latents and
    text embeddings have Stable Diffusion 1.4's shapes: what those cost can be measured without a GPU.
    """
    if size == "tiny_sd":
        return BaseModel.load(str(TINY_SD))
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=1, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=768, num_hidden_layers=1, num_attention_heads=12)
    return BaseModel(
        name="narrow",
        tokenizer=CLIPTokenizer.from_pretrained(TINY_SD, subfolder="tokenizer", model_max_length=77),
        text_encoder=CLIPTextModel(text).eval(),
        vae=vae.eval(),
        scheduler=diffusers.DDPMScheduler(),
    )


def copy_as(model_class: type, model: torch.nn.Module) -> torch.nn.Module:
    """The same model in another class, on the same device, with weights of its own."""
    with model.device:
        copy = model_class.from_config(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def device_name() -> str:
    return devices.device_name(pick_device())
