"""UNet and ControlNet as one denoiser: loaded, asked for a prediction, rehearsed without weights for an estimate."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Callable

import torch
from accelerate import Accelerator

from finetune.estimate import Rehearsal, cast_frozen
from finetune.model.base import factor_of, load_part
from finetune.model.single_file import configs_of
from finetune.setup import frozen_dtype, place_frozen, use_fast_attention

from .controlnet import ControlNetModel
from .loading import load_controlnet, require_fit
from .unets.unet_2d_condition import UNet2DConditionModel


def check_widths(controlnet: ControlNetModel, factor: int, start: str | None) -> None:
    """Raises ValueError where conditions would not come down to the latents' size; `start` is whose the widths are."""
    # Each width after the first halves the condition: a ControlNet with another number of them would only fail in its
    # first step, after the data were encoded.
    widths, wanted = len(controlnet.config.conditioning_embedding_out_channels), 1 + int(math.log2(factor))
    if widths != wanted:
        which = f"The ControlNet {start!r} to start from" if start else "--conditioning_channels"
        raise ValueError(
            f"{which} has {widths} widths. The base makes one latent of {factor} px, which takes {wanted}."
        )


def load_models(
    base: str, args: argparse.Namespace, accelerator: Accelerator
) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """The frozen UNet, and the ControlNet to train: a given one, or a copy of the UNet's encoder; always float32."""
    unet = load_part(UNet2DConditionModel, base, "unet")
    if args.controlnet_model_name_or_path is None:
        trained = ControlNetModel.from_unet(unet, args.conditioning_channels)
    else:
        trained = load_controlnet(args.controlnet_model_name_or_path, unet, torch.float32)
        widths = list(trained.config.conditioning_embedding_out_channels)
        if widths != args.conditioning_channels:
            flag = "--conditioning_channels counts for nothing"
            accelerator.print(f"Note: {flag}, as the ControlNet to start from has {' '.join(map(str, widths))}.")
    trained.train()
    # After the copy, which is to be float32: on a GPU the UNet's own weights are rounded here to half precision.
    place_frozen(unet, accelerator)
    for model in (unet, trained):
        use_fast_attention(model, accelerator.device)
        # The frozen UNet too: its decoder stands between ControlNet and the loss, so gradients go through it.
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
    return unet, trained


def predict_noise(
    unet: UNet2DConditionModel,
    controlnet: torch.nn.Module,
    unet_dtype: torch.dtype,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    text_embeddings: torch.Tensor,
    condition: torch.Tensor,
) -> torch.Tensor:
    """What UNet and ControlNet together predict, of the latents' shape (B, 4, H / 8, W / 8)."""
    # Both read the same noisy latents, timesteps and text; the condition goes to ControlNet alone. `down` holds one
    # residual for each skip, 12 in Stable Diffusion 1, of (B, C_i, H_i, W_i), `mid` is (B, C_n, h, w).
    down, mid = controlnet(noisy_latents, timesteps, text_embeddings, condition, return_dict=False)
    # accelerate makes them float32. On a GPU, where the UNet is in half precision, its decoder would be, too.
    down, mid = [residual.to(unet_dtype) for residual in down], mid.to(unet_dtype)
    return unet(noisy_latents, timesteps, text_embeddings, None, down, mid).sample


def rehearsal(args: argparse.Namespace, device: torch.device) -> Callable[[str], Rehearsal]:
    """What makes one batch's step in a precision, for an estimate, without weights. Raises BaseModelError."""
    unet_config, vae_config, text_config = configs_of(args.pretrained_model_name_or_path)
    start = args.controlnet_model_name_or_path
    config = ControlNetModel.load_config(start) if start and Path(start).is_dir() else None
    if config:
        require_fit(start, config, unet_config)
    batch, side = args.train_batch_size, args.resolution // factor_of(vae_config)

    def make(precision: str) -> Rehearsal:
        unet = UNet2DConditionModel.from_config(unet_config)
        trained = ControlNetModel.from_config(config) if config else None
        trained = trained or ControlNetModel.from_unet(unet, args.conditioning_channels)
        unet.requires_grad_(False)  # after the copy, as in train.py: one by `deepcopy` would be as frozen as the UNet
        check_widths(trained, factor_of(vae_config), start)
        for model in (unet, trained.train()):
            use_fast_attention(model, device)
            if args.gradient_checkpointing:
                model.enable_gradient_checkpointing()
        dtype = frozen_dtype(precision, device)
        cast_frozen(unet, dtype)
        # Shapes as in train.py's batches; what stands in them does not matter, as nothing is computed.
        latents = torch.randn(batch, unet.config.in_channels, side, side)  # (B, 4, H / 8, W / 8)
        text = torch.randn(batch, text_config.max_position_embeddings, text_config.hidden_size)  # (B, T, D)
        inputs = (latents, torch.ones(batch), text, torch.rand(batch, 3, args.resolution, args.resolution))
        return Rehearsal([unet, trained], partial(predict_noise, unet, trained, dtype, *inputs), precision)

    return make
