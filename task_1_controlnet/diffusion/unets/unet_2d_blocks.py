"""The five blocks that Stable Diffusion's UNet is made of, built from diffusers' layers.

Architecture: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
https://arxiv.org/abs/2112.10752. Module names are diffusers', so that weights are exchanged key by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class BlockParams:
    """What all blocks of one model share."""

    temb_channels: int
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    upcast_attention: bool


def resnet_layer(in_channels: int, out_channels: int, params: BlockParams) -> ResnetBlock2D:
    # Norm, SiLU, convolution, twice, and a way around them (He et al., 2016, https://arxiv.org/abs/1512.03385). The
    # timestep's embedding is added between the two: every layer has to know how noisy its input is.
    return ResnetBlock2D(
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=params.temb_channels,
        groups=params.norm_num_groups,
        eps=params.norm_eps,
        non_linearity="silu",
    )


def attention_layer(channels: int, num_heads: int, params: BlockParams) -> Transformer2DModel:
    # Each place looks at all others, then at the words, then by itself through two linear layers (Rombach et al., 2022,
    # section 3.3). At 64 x 64 latents the first of these compares 4,096 places with 4,096, for each head.
    return Transformer2DModel(
        num_heads,
        channels // num_heads,  # so that attention is as wide as the features, however many heads there are
        in_channels=channels,
        cross_attention_dim=params.cross_attention_dim,
        norm_num_groups=params.norm_num_groups,
        use_linear_projection=params.use_linear_projection,
        upcast_attention=params.upcast_attention,
    )


class UNetBlock(nn.Module):
    """Residual layers, each followed by attention to the text in blocks that have `attentions`.

    Blocks without attention have no such attribute: by it diffusers tells them apart, for scales of a LoRA by block.

    diffusers' `enable_gradient_checkpointing` sets the flag of that name; attention layers checkpoint themselves.

    `kwargs` of a call are for the attention processors, as the UNet's `cross_attention_kwargs`.
    """

    gradient_checkpointing = False
    resnets: nn.ModuleList
    attentions: nn.ModuleList

    def run_resnet(self, i: int, hidden_states: Tensor, temb: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Not reentrant: that kind gives no gradient where no input wants one, as with a frozen encoder.
            # Forget what is inside a layer, and compute it again in the backward pass (Chen et al., 2016,
            # https://arxiv.org/abs/1604.06174): 7.9 GiB in place of 11.2 for 4 pictures of 512 px (H200, 2026-11-29).
            return checkpoint(self.resnets[i], hidden_states, temb, use_reentrant=False)
        return self.resnets[i](hidden_states, temb)

    def run_attention(
        self, i: int, hidden_states: Tensor, encoder_hidden_states: Tensor, kwargs: dict[str, Any] | None
    ) -> Tensor:
        if not hasattr(self, "attentions"):
            return hidden_states
        if kwargs and "scale" in kwargs:
            raise ValueError(
                "cross_attention_kwargs holds a 'scale', a LoRA's: give it to the pipeline, or call set_adapters."
            )
        return self.attentions[i](
            hidden_states, encoder_hidden_states=encoder_hidden_states, cross_attention_kwargs=kwargs, return_dict=False
        )[0]


class DownBlock2D(UNetBlock):
    """Residual layers, then a convolution of stride 2 if `add_downsample`."""

    attends_to_text = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        num_heads: int,
        add_downsample: bool,
        params: BlockParams,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(resnet_layer(a, b, params) for a, b in zip(widths, widths[1:]))
        self.downsamplers = None
        if add_downsample:
            # "op": by its default name the library's layer is in the state dict twice, but once in the files.
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, use_conv=True, name="op")])
        if self.attends_to_text:
            self.attentions = nn.ModuleList(attention_layer(out_channels, num_heads, params) for _ in range(num_layers))

    def forward(
        self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor, kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the output and every layer's result, which the decoder takes as skip connections.

        Args:
            hidden_states: (batch, in_channels, height, width).
            temb: (batch, temb_channels).
            encoder_hidden_states: (batch, tokens, cross_attention_dim).
        """
        skips: tuple[Tensor, ...] = ()
        # fmt: off
        # Skip connections (Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597): what halving the size loses,
        # such as where exactly a rim runs, the decoder gets back from here.
        for i in range(len(self.resnets)):
            hidden_states = self.run_resnet(i, hidden_states, temb)                              # (B, out, H, W)
            hidden_states = self.run_attention(i, hidden_states, encoder_hidden_states, kwargs)
            skips += (hidden_states,)
        if self.downsamplers is not None:
            hidden_states = self.downsamplers[0](hidden_states)                                  # (B, out, H/2, W/2)
            skips += (hidden_states,)
        # fmt: on
        return hidden_states, skips


class CrossAttnDownBlock2D(DownBlock2D):
    """A DownBlock2D with attention to the text after each residual layer."""

    attends_to_text = True


class UNetMidBlock2DCrossAttn(UNetBlock):
    """Residual layer, attention, residual layer, at the smallest size."""

    def __init__(self, channels: int, num_heads: int, params: BlockParams) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnet_layer(channels, channels, params) for _ in range(2))
        self.attentions = nn.ModuleList([attention_layer(channels, num_heads, params)])

    def forward(
        self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor, kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        """Shapes as in `DownBlock2D.forward`; the output has the input's."""
        hidden_states = self.run_resnet(0, hidden_states, temb)  # (B, C, h, w)
        hidden_states = self.run_attention(0, hidden_states, encoder_hidden_states, kwargs)
        return self.run_resnet(1, hidden_states, temb)  # (B, C, h, w)


class UpBlock2D(UNetBlock):
    """Residual layers that each take one skip connection, then a doubling of the size if `add_upsample`."""

    attends_to_text = False

    def __init__(
        self,
        in_channels: int,
        skip_channels: Sequence[int],
        out_channels: int,
        num_heads: int,
        add_upsample: bool,
        params: BlockParams,
    ) -> None:
        """`skip_channels` has one entry a layer, in the order in which the layers take them."""
        super().__init__()
        # A skip is laid behind the features, channel by channel, not added to them: hence the sum of both widths.
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            resnet_layer(width + skip, out_channels, params) for width, skip in zip(widths, skip_channels)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, use_conv=True)]) if add_upsample else None
        if self.attends_to_text:
            self.attentions = nn.ModuleList(attention_layer(out_channels, num_heads, params) for _ in skip_channels)

    def forward(
        self,
        hidden_states: Tensor,
        skips: tuple[Tensor, ...],
        temb: Tensor,
        encoder_hidden_states: Tensor,
        kwargs: dict[str, Any] | None = None,
        upsample_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Consumes `skips` from the end.

        Args:
            hidden_states: (batch, in_channels, height, width).
            skips: one tensor a layer, (batch, skip channels, height, width).
            upsample_size: the size to reach, where it is not the double (odd sizes were halved and rounded).
        """
        # fmt: off
        for i in range(len(self.resnets)):
            hidden_states = torch.cat([hidden_states, skips[-1 - i]], dim=1)                     # (B, in + skip, H, W)
            hidden_states = self.run_resnet(i, hidden_states, temb)                              # (B, out, H, W)
            hidden_states = self.run_attention(i, hidden_states, encoder_hidden_states, kwargs)
        if self.upsamplers is not None:
            hidden_states = self.upsamplers[0](hidden_states, upsample_size)                     # (B, out, 2 H, 2 W)
        # fmt: on
        return hidden_states


class CrossAttnUpBlock2D(UpBlock2D):
    """An UpBlock2D with attention to the text after each residual layer."""

    attends_to_text = True
