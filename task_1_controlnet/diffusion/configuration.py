"""The configurations of both models: what they may ask for, and refused in a sentence what these models do not do."""

from __future__ import annotations

from numbers import Real
from typing import Any, Callable, Mapping, Sequence

from .unets.unet_2d_blocks import BlockParams

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

# Those of them that may have one value for each block.
INERT_BY_BLOCK = ("only_cross_attention", "transformer_layers_per_block")


def check_inert_fields(fields: dict[str, Any]) -> None:
    """Raises ValueError for the first field that asks for something these models do not do."""
    for name, value in fields.items():
        if name not in INERT_FIELDS:
            raise ValueError(f"Configuration field {name!r} is unknown to this model (it is set to {value!r}).")
        values = value if name in INERT_BY_BLOCK and isinstance(value, (list, tuple)) else [value]
        if not all(is_one_of(v, INERT_FIELDS[name]) for v in values):
            raise ValueError(
                f"Configuration field {name!r} is {value!r}, which this model does not support: it is made for "
                f"Stable Diffusion 1.x and 2.x, where {name!r} is {INERT_FIELDS[name][0]!r}."
            )


def is_one_of(value: Any, allowed: Sequence[Any]) -> bool:
    """To Python True is 1, which a configuration that says `true` does not mean."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed)


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_size, value))


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# What the fields that a model has may be, where one that is not would fail far from its name, or not at all.
SIZE, NUMBER = (is_size, "a positive integer"), (is_number, "a number")
WIDTHS = (is_list_of_sizes, "a list of positive integers")
FIELD_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "in_channels": SIZE,
    "out_channels": SIZE,
    "conditioning_channels": SIZE,
    "cross_attention_dim": SIZE,
    "norm_num_groups": SIZE,
    "block_out_channels": WIDTHS,
    "conditioning_embedding_out_channels": WIDTHS,
    "norm_eps": NUMBER,
    "freq_shift": NUMBER,
}


def check_fields(config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first field whose value is of a kind that these models do not take."""
    for name, (is_right, wanted) in FIELD_KINDS.items():
        if name in config and not is_right(config[name]):
            raise ValueError(f"Configuration field {name!r} is {config[name]!r}; this model takes {wanted}.")
    groups, widths = config["norm_num_groups"], config["block_out_channels"]
    # A norm's groups have equally many channels (Wu & He, 2018); PyTorch's own message names neither of the two fields.
    if any(width % groups for width in widths):
        raise ValueError(
            f"Configuration field 'norm_num_groups' is {groups}; it must divide 'block_out_channels', {widths}."
        )


def block_classes(blocks: dict[str, type], names: Sequence[str], num_blocks: int, field: str) -> list[type]:
    """The class for each name, or a ValueError that names the configuration field which asked for them."""
    if not isinstance(names, (list, tuple)) or len(names) != num_blocks:
        raise ValueError(f"Configuration field {field!r} is {names!r}; it must name {num_blocks} blocks.")
    for name in names:
        if name not in blocks:
            raise ValueError(f"Configuration field {field!r} names the block {name!r}; supported are {sorted(blocks)}.")
    return [blocks[name] for name in names]


def per_block(value: int | Sequence[int], num_blocks: int, field: str) -> tuple[int, ...]:
    """One value for each block: configurations give either a list or one number for all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_blocks
    if len(values) != num_blocks:
        raise ValueError(f"Configuration field {field!r} has {len(values)} values for {num_blocks} blocks.")
    if not all(is_size(v) for v in values):
        raise ValueError(f"Configuration field {field!r} is {value!r}; give a positive integer, or one for each block.")
    return values


def block_settings(config: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], BlockParams]:
    """Each block's number of heads and of layers, and what all blocks share."""
    num_blocks = len(config["block_out_channels"])
    # diffusers called the number of heads `attention_head_dim` by mistake, and keeps it for the files that say so.
    num_heads = per_block(config["attention_head_dim"], num_blocks, "attention_head_dim")
    num_layers = per_block(config["layers_per_block"], num_blocks, "layers_per_block")
    params = BlockParams(
        # The time embedding is four times as wide as the first features, as in the code of Ho et al., 2020.
        temb_channels=4 * config["block_out_channels"][0],
        cross_attention_dim=config["cross_attention_dim"],
        norm_num_groups=config["norm_num_groups"],
        norm_eps=config["norm_eps"],
        use_linear_projection=config["use_linear_projection"],
        upcast_attention=config["upcast_attention"],
    )
    return num_heads, num_layers, params
