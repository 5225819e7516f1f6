"""ControlNet: a trainable copy of the UNet's encoder that reads a condition image and steers the frozen UNet.

Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", 2023,
https://arxiv.org/abs/2302.05543. The copy's results reach the UNet through zero convolutions: 1x1 convolutions that
start at zero, so that at the first step the UNet draws exactly what it drew before, and training departs from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from .configuration import block_settings
from .modeling import StableDiffusionModel, build_down_blocks, build_time_embedding, skip_widths
from .unets.unet_2d_blocks import UNetMidBlock2DCrossAttn
from .unets.unet_2d_condition import UNet2DConditionModel


@dataclass
class ControlNetOutput(BaseOutput):
    """One residual for each of the UNet's skip connections, and one for its mid block."""

    down_block_res_samples: tuple[torch.Tensor, ...]
    mid_block_res_sample: torch.Tensor


def zero_convolution(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, padding: int = 0
) -> nn.Module:
    """A trainable convolution whose weight and bias start at zero (section 3.1 of the paper)."""
    # Zero, and yet it learns: of y = W x + b the gradient of W needs x, and not W (section 3.1 of the paper, eq. 2 and
    # 3, and its authors' FAQ, https://github.com/lllyasviel/ControlNet/blob/main/docs/faq.md). What lies behind waits
    # for W: on the embedded base these moved at step 1, the copy at 2, what reads the condition at 3.
    ######## TODO (1) ########
    module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    ######## TODO (1) ########
    return module


def residual_scales(number: int, conditioning_scale: float, guess_mode: bool) -> list[float]:
    """The factor on each residual, the mid block's last."""
    # The authors' code takes 0.825 times as much from one residual to the next: 0.1 to 1 over the 13 of Stable
    # Diffusion 1. The coarse features, which say what is where, steer; the fine ones are left to the UNet.
    # tolist: torch.compile cannot follow a number that leaves its tensor. Training has no guess mode, and compiles
    # both models in one graph: 2 minutes in place of the 2.7 that two graphs took (2026-11-26).
    if guess_mode:
        return (torch.logspace(-1, 0, number) * conditioning_scale).tolist()
    return [conditioning_scale] * number


class ControlNetConditioningEmbedding(nn.Module):
    """Brings the condition image to the size and width of the UNet's first features (section 3.2 of the paper).

    The convolutions start with weights of gain 2, as SiLU halves small values, and without biases; the first with gain
    8, as outlines and edges are thin and leave most of the image black. By PyTorch's defaults they would arrive as a
    fraction of what the biases add, and learning would wait until that grows.
    """

    def __init__(self, out_channels: int, conditioning_channels: int, block_out_channels: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(conditioning_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        # Halved as often as the autoencoder halves: four widths make three halvings, 512 px to Stable Diffusion's 64.
        for narrow, wide in zip(block_out_channels, block_out_channels[1:]):
            self.blocks.append(nn.Conv2d(narrow, narrow, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, kernel_size=3, padding=1, stride=2))
        # With a gain of 1 a linear layer keeps the size of its input, and one with ReLU wants 1.4 (He et al., 2015,
        # https://arxiv.org/abs/1502.01852); why these are larger stands above.
        for conv in (self.conv_in, *self.blocks):
            gain = 8 if conv is self.conv_in else 2
            nn.init.normal_(conv.weight, std=gain / conv.weight[0].numel() ** 0.5)
            nn.init.zeros_(conv.bias)
        # The first of eq. 2's two zero convolutions: at the start the condition changes nothing in what the copy reads,
        # either. 3x3 as in the authors' code, where those at the outputs are 1x1.
        self.conv_out = zero_convolution(block_out_channels[-1], out_channels, kernel_size=3, padding=1)

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) in 0..1 to (batch, out_channels, height / 8, width / 8)."""
        # fmt: off
        embedding = F.silu(self.conv_in(conditioning))                                              # (B, 16, 8 H, 8 W)
        for block in self.blocks:
            embedding = F.silu(block(embedding))                                        # in the end (B, 256, H, W)
        return self.conv_out(embedding)                                                             # (B, C0, H, W)
        # fmt: on


class ControlNetModel(StableDiffusionModel):
    """The encoder half of `UNet2DConditionModel` with a condition image as an input and zero convolutions as outputs.

    The fields of the configuration are diffusers'. `conditioning_embedding_out_channels` are the widths of the
    condition image's embedding; each after the first halves the size, and four bring it to the latents' eighth.

    Raises:
        ValueError: for a configuration field that this model does not support; the message names the field.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,  # of the latents: 4 in Stable Diffusion, 16 in the embedded base
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,  # of the text's embeddings: 768 in Stable Diffusion 1, 1024 in 2
        attention_head_dim: int | Sequence[int] = 8,  # the number of heads, whatever the name says: see the UNet
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        # The widths of the authors' code (cldm.py); section 3.2 of the paper says 16, 32, 64, 128.
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        num_heads, num_layers, params = block_settings(self.config)

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.time_proj, self.time_embedding = build_time_embedding(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            block_out_channels[0], conditioning_channels, conditioning_embedding_out_channels
        )
        self.down_blocks = build_down_blocks(down_block_types, block_out_channels, num_heads, num_layers, params)
        self.mid_block = UNetMidBlock2DCrossAttn(block_out_channels[-1], num_heads[-1], params)

        # One zero convolution for each of the UNet's skip connections, and one for its mid block.
        skip_channels = skip_widths(block_out_channels, num_layers)
        self.controlnet_down_blocks = nn.ModuleList(zero_convolution(c, c) for c in skip_channels)
        self.controlnet_mid_block = zero_convolution(block_out_channels[-1], block_out_channels[-1])

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256)
    ) -> ControlNetModel:
        """A ControlNet of the UNet's shape, starting from a copy of the weights of its encoder and mid block."""
        # All fields that both have; what the UNet alone has is its decoder's.
        shared = {name: unet.config[name] for name in cls._get_init_keys(cls) if name in unet.config}
        controlnet = cls(**shared, conditioning_embedding_out_channels=conditioning_embedding_out_channels)

        ######## TODO (2) ########
        for name in ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block"):
            getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())
        ######## TODO (2) ########

        # On its device, not in its precision: what is trained stays in float32, as the small steps of a low learning
        # rate are lost in half precision (Micikevicius et al., 2018, https://arxiv.org/abs/1710.03740).
        return controlnet.to(unet.device)

    def embed_condition(self, controlnet_cond: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The features that are added to those of the latents `sample`; `controlnet_cond` may be these already."""
        condition = controlnet_cond
        # What the sampling loop has embedded once, for all steps, has the size and width of features already.
        if condition.shape[1:] != (self.config.block_out_channels[0], *sample.shape[-2:]):
            condition = self.controlnet_cond_embedding(controlnet_cond)  # (B, C0, H, W)
        if condition.shape[-2:] != sample.shape[-2:]:
            raise ValueError(
                f"Condition images of {tuple(controlnet_cond.shape[-2:])} px give features of "
                f"{tuple(condition.shape[-2:])}, but the latents are {tuple(sample.shape[-2:])}: "
                f"the condition must have the size of the image that is generated."
            )
        return condition

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Computes the residuals that the UNet adds to its skip connections and its mid block.

        Args:
            sample: noisy latents, (batch, in_channels, height, width).
            timestep: one for all, or (batch,).
            encoder_hidden_states: text embeddings, (batch, tokens, cross_attention_dim).
            controlnet_cond: condition images in 0..1, (batch, conditioning_channels, 8 * height, 8 * width); or what
                `controlnet_cond_embedding` makes of them, (batch, block_out_channels[0], height, width), which does not
                depend on the timestep and so needs computing only once.
            conditioning_scale: a factor on all residuals.
            cross_attention_kwargs: passed to the attention processors.
            guess_mode: scale the residuals from 0.1 at the first skip connection to 1 at the mid block.

        Raises:
            ValueError: if the condition images do not have the size that the latents ask for.
        """
        # fmt: off
        emb = self.embed_timestep(sample, timestep)                                                # (B, 4 * C0)
        condition = self.embed_condition(controlnet_cond, sample)                                  # (B, C0, H, W)
        # The only place where the condition enters: from here on the copy runs as the UNet's encoder does.
        sample = self.conv_in(sample) + condition                                                  # (B, C0, H, W)

        down_block_res_samples = (sample,)
        for block in self.down_blocks:
            sample, skips = block(sample, emb, encoder_hidden_states, cross_attention_kwargs)      # halved but the last
            down_block_res_samples += skips
        sample = self.mid_block(sample, emb, encoder_hidden_states, cross_attention_kwargs)        # (B, Cn, h, w)
        # fmt: on

        ######## TODO (3) ########
        down_block_res_samples = tuple(
            zero_conv(skip) for zero_conv, skip in zip(self.controlnet_down_blocks, down_block_res_samples)
        )
        mid_block_res_sample = self.controlnet_mid_block(sample)
        ######## TODO (3) ########

        scales = residual_scales(len(down_block_res_samples) + 1, conditioning_scale, guess_mode)
        down_block_res_samples = tuple(residual * s for residual, s in zip(down_block_res_samples, scales))
        mid_block_res_sample = mid_block_res_sample * scales[-1]

        if not return_dict:
            return down_block_res_samples, mid_block_res_sample
        return ControlNetOutput(down_block_res_samples, mid_block_res_sample)
