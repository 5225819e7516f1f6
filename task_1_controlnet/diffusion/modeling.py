"""What the UNet and ControlNet have in common: how they are loaded and configured, and the parts both are built of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Sequence

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from finetune.checkpoints import give_rights

from .unets.unet_2d_blocks import BlockParams, CrossAttnDownBlock2D, DownBlock2D

# Fields of diffusers' configurations that Stable Diffusion leaves switched off, with the values that mean "off".
INERT_FIELDS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "global_pool_conditions": (False,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}

DOWN_BLOCKS = {"DownBlock2D": DownBlock2D, "CrossAttnDownBlock2D": CrossAttnDownBlock2D}


def check_inert_fields(fields: dict[str, Any]) -> None:
    """Raises ValueError for the first field that asks for something these models do not do."""
    for name, value in fields.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name not in INERT_FIELDS:
            raise ValueError(f"Configuration field {name!r} is unknown to this model (it is set to {value!r}).")
        if any(v not in INERT_FIELDS[name] for v in values):
            raise ValueError(
                f"Configuration field {name!r} is {value!r}, which this model does not support: it is made for "
                f"Stable Diffusion 1.x and 2.x, where {name!r} is {INERT_FIELDS[name][0]!r}."
            )


def block_class(blocks: dict[str, type], name: str, field: str) -> type:
    """The class called `name`, or a ValueError that names the configuration field which asked for it."""
    if name not in blocks:
        raise ValueError(f"Configuration field {field!r} names the block {name!r}; supported are {sorted(blocks)}.")
    return blocks[name]


def per_block(value: int | Sequence[int], num_blocks: int, field: str) -> tuple[int, ...]:
    """One value for each block: configurations give either a list or one number for all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_blocks
    if len(values) != num_blocks:
        raise ValueError(f"Configuration field {field!r} has {len(values)} values for {num_blocks} blocks.")
    return values


class StableDiffusionModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A model with diffusers' loading, saving and adapters, which refuses configurations that it cannot honour."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock"]

    if not hasattr(ModelMixin, "_set_gradient_checkpointing"):  # diffusers before 0.33 asks each model for this

        def _set_gradient_checkpointing(self, module: nn.Module, value: bool = False) -> None:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = value

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Splits a configuration for `from_config`; diffusers would ignore the fields that `__init__` does not take."""
        known = cls._get_init_keys(cls)
        inert = {name: value for name, value in config_dict.items() if name not in known and not name.startswith("_")}
        check_inert_fields(inert)
        config_dict = {name: value for name, value in config_dict.items() if name not in inert}
        init_dict, unused_kwargs, other_fields = super().extract_init_dict(config_dict, **kwargs)
        other_fields.update(inert)  # kept, so that a model is saved with the configuration it was loaded with
        return init_dict, unused_kwargs, other_fields

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers' models, but readable for whom the umask says."""
        super().save_pretrained(save_directory, *args, **kwargs)
        give_rights(*Path(save_directory).glob("*.safetensors"))

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Every attention layer's processor, by the layer's name followed by `.processor`."""
        layers = self.named_modules()
        return {f"{name}.processor": layer.get_processor() for name, layer in layers if isinstance(layer, Attention)}

    def set_attn_processor(self, processor: Any) -> None:
        """Sets one processor for all attention layers, or one each from a dict like `attn_processors`.

        Raises:
            ValueError: if a dict does not name exactly the model's attention layers.
        """
        names = list(self.attn_processors)
        processors = processor if isinstance(processor, dict) else {name: processor for name in names}
        if set(processors) != set(names):
            raise ValueError(f"Expected a processor for each of {len(names)} attention layers, got {len(processors)}.")
        for name in names:
            self.get_submodule(name[: -len(".processor")]).set_processor(processors[name])

    def embed_timestep(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """The time embedding of shape (batch, 4 * block_out_channels[0]) for one timestep, or one per sample."""
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float64 if isinstance(timestep, float) else torch.int64)
        timesteps = timestep.to(sample.device).reshape(-1).expand(sample.shape[0])
        return self.time_embedding(self.time_proj(timesteps).to(sample.dtype))


def build_time_embedding(width: int, flip_sin_to_cos: bool, freq_shift: int) -> tuple[Timesteps, TimestepEmbedding]:
    return Timesteps(width, flip_sin_to_cos, freq_shift), TimestepEmbedding(width, 4 * width, act_fn="silu")


def build_down_blocks(
    down_block_types: Sequence[str],
    block_out_channels: Sequence[int],
    num_heads: Sequence[int],
    layers_per_block: Sequence[int],
    params: BlockParams,
) -> nn.ModuleList:
    """The encoder's blocks; all but the last halve the size."""
    blocks = nn.ModuleList()
    in_channels = block_out_channels[0]
    for i, name in enumerate(down_block_types):
        block = block_class(DOWN_BLOCKS, name, "down_block_types")
        out_channels, add_downsample = block_out_channels[i], i < len(down_block_types) - 1
        blocks.append(block(in_channels, out_channels, layers_per_block[i], num_heads[i], add_downsample, params))
        in_channels = out_channels
    return blocks
