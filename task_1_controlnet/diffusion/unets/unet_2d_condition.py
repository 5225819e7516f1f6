"""Stable Diffusion's UNet, which predicts the noise in latents from the text and, if given, ControlNet's residuals.

Same weights, same inputs: the output equals diffusers' UNet2DConditionModel to the bit on CPU in float32.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import UNet2DConditionLoadersMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from ..configuration import block_classes, block_settings
from ..modeling import StableDiffusionModel, build_down_blocks, build_time_embedding, skip_widths
from .unet_2d_blocks import CrossAttnUpBlock2D, UNetMidBlock2DCrossAttn, UpBlock2D

UP_BLOCKS = {"UpBlock2D": UpBlock2D, "CrossAttnUpBlock2D": CrossAttnUpBlock2D}


def is_steered(down: Sequence[torch.Tensor] | None, mid: torch.Tensor | None, num_skips: int) -> bool:
    """Whether a ControlNet steers. Raises ValueError if only one kind is given, or not one for each skip connection."""
    if (down is None) != (mid is None):
        raise ValueError("ControlNet's residuals for the skip connections and for the mid block go together.")
    # Too few would be no error by themselves: the picture would obey a little less, and nobody know why.
    if down is not None and len(down) != num_skips:
        raise ValueError(
            f"ControlNet gave {len(down)} residuals for {num_skips} skip connections: one for each is needed."
        )
    return down is not None


def size_unless_doubled(sample: torch.Tensor, skips_left: Sequence[torch.Tensor]) -> tuple[int, int] | None:
    """The height and width that the next skip connection asks for, None where they are the double of the sample's."""
    size = tuple(skips_left[-1].shape[2:]) if skips_left else None
    # A side of odd length was halved and rounded up: doubled it would be one too long for its skip.
    if size is not None and all(b == 2 * a for a, b in zip(sample.shape[2:], size)):
        return None
    return size


class UNet2DConditionModel(StableDiffusionModel, UNet2DConditionLoadersMixin):
    """The denoiser of Stable Diffusion 1.x and 2.x.

    The fields of the configuration are diffusers'. As there, `attention_head_dim` is the number of heads.

    Raises:
        ValueError: for a configuration field that this model does not support; the message names the field.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,  # of the latents; any is computed, and pipelines ask for this one by default
        in_channels: int = 4,  # of the latents: 4 in Stable Diffusion, 16 in the embedded base
        out_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        norm_num_groups: int = 32,  # the best of those that Wu & He tried, 2018, https://arxiv.org/abs/1803.08494
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,  # of the text's embeddings: 768 in Stable Diffusion 1, 1024 in 2
        attention_head_dim: int | Sequence[int] = 8,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        num_blocks = len(block_out_channels)
        num_heads, num_layers, params = block_settings(self.config)

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.time_proj, self.time_embedding = build_time_embedding(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.down_blocks = build_down_blocks(down_block_types, block_out_channels, num_heads, num_layers, params)
        self.mid_block = UNetMidBlock2DCrossAttn(block_out_channels[-1], num_heads[-1], params)

        # The decoder takes the skip connections in reverse: their widths are a stack that the encoder has filled.
        skip_channels = skip_widths(block_out_channels, num_layers)
        self.num_skips = len(skip_channels)
        self.up_blocks = nn.ModuleList()
        width = block_out_channels[-1]
        up_blocks = block_classes(UP_BLOCKS, up_block_types, num_blocks, "up_block_types")
        for i, block in zip(reversed(range(num_blocks)), up_blocks):
            # A layer more than the encoder's block has: the one more skip is what entered the block.
            skips = [skip_channels.pop() for _ in range(num_layers[i] + 1)]
            self.up_blocks.append(block(width, skips, block_out_channels[i], num_heads[i], i > 0, params))
            width = block_out_channels[i]
        self.num_upsamplers = num_blocks - 1

        # The blocks have norm and SiLU before their convolutions, none behind: the last convolution gets its own.
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], eps=norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, kernel_size=3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predicts the noise (or the velocity, where the scheduler says so), of the shape of `sample`.

        Args:
            sample: noisy latents, (batch, in_channels, height, width), any height and width.
            timestep: one for all, or (batch,).
            encoder_hidden_states: text embeddings, (batch, tokens, cross_attention_dim).
            cross_attention_kwargs: passed to the attention processors (a LoRA's `scale` is the pipeline's to apply).
            down_block_additional_residuals: ControlNet's residuals, one for each skip connection, of its shape.
            mid_block_additional_residual: ControlNet's residual for the mid block's output, of its shape.

        Raises:
            ValueError: if only one kind of residual is given, or not one for each skip connection.
        """
        is_controlnet = is_steered(down_block_additional_residuals, mid_block_additional_residual, self.num_skips)

        # fmt: off
        emb = self.embed_timestep(sample, timestep)                                                # (B, 4 * C0)
        sample = self.conv_in(sample)                                                              # (B, C0, H, W)

        # In Stable Diffusion 1, for 512 px, twelve in the end, channels x side: three of 320 x 64, then 320 x 32, two
        # of 640 x 32, 640 x 16, two of 1280 x 16, three of 1280 x 8.
        down_block_res_samples = (sample,)
        for block in self.down_blocks:
            sample, skips = block(sample, emb, encoder_hidden_states, cross_attention_kwargs)      # halved but the last
            down_block_res_samples += skips

        ######## TODO (4-1) ########
        if is_controlnet:
            down_block_res_samples = tuple(
                skip + residual for skip, residual in zip(down_block_res_samples, down_block_additional_residuals)
            )
        ######## TODO (4-1) ########

        sample = self.mid_block(sample, emb, encoder_hidden_states, cross_attention_kwargs)        # (B, Cn, h, w)

        if is_controlnet:
            ######## TODO (4-2) ########
            sample = sample + mid_block_additional_residual
            ######## TODO (4-2) ########

        for block in self.up_blocks:
            # Last in, first out: the decoder goes back up the way that the encoder came down.
            skips = down_block_res_samples[-len(block.resnets) :]
            down_block_res_samples = down_block_res_samples[: -len(block.resnets)]
            size = size_unless_doubled(sample, down_block_res_samples)
            sample = block(sample, skips, emb, encoder_hidden_states, cross_attention_kwargs, size)  # doubled

        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))                          # (B, out, H, W)
        # fmt: on
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)
