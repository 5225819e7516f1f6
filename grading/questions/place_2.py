"""Questions on TODO (2), the copy of the UNet's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drawing import Configuration, Draw, Question, nothing

if TYPE_CHECKING:
    from .models import Models


def draw_resnet(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    i, j = draw.below(configuration.num_blocks), draw.below(configuration.layers_per_block)
    return {"name": f"down_blocks.{i}.resnets.{j}"}


def draw_downsampler(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"name": f"down_blocks.{draw.below(configuration.num_blocks - 1)}.downsamplers.0"}


def draw_attention(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    i, j = draw.choice(configuration.blocks_with_attention), draw.below(configuration.layers_per_block)
    layer = draw.choice(("to_k", "to_v"))
    return {"name": f"down_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2.{layer}.weight"}


def draw_modules(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    some = ("conv_in", "time_embedding", "mid_block.resnets.0", draw_downsampler(draw, configuration)["name"])
    names = draw.sample(["time_proj", *draw.sample(some, 2)], 3)
    return {"names": names, "listed": ", ".join(f"`{name}`" for name in names)}


def draw_shared(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"name": draw.choice(("conv_in", "time_embedding"))}


def frozen_with_it(models: Models, it: dict[str, Any]) -> int:
    """What happens to ControlNet's parameters: tried, and undone."""
    unet, controlnet, own = models.unet, models.controlnet, getattr(models.controlnet, it["name"])
    setattr(controlnet, it["name"], getattr(unet, it["name"]))
    unet.requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in controlnet.parameters() if not parameter.requires_grad)
    unet.requires_grad_(True)
    setattr(controlnet, it["name"], own)
    return frozen


def draw_layer_of_embedding(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"name": draw.choice(("conv_in", *(f"blocks.{i}" for i in range(6))))}


QUESTIONS = [
    Question(
        "copy_conv_in_parameters",
        "2",
        "How many parameters does TODO (2) copy into `controlnet.conv_in`, which has a 3x3 kernel?",
        nothing,
        lambda models, it: models.count(models.controlnet.conv_in),
        "From the latents' channels to the first of block_out_channels: 9 weights for each pair, and the biases.",
    ),
    Question(
        "copy_time_embedding_parameters",
        "2",
        "How many parameters does TODO (2) copy into `controlnet.time_embedding`, two linear layers with biases?",
        nothing,
        lambda models, it: models.count(models.controlnet.time_embedding),
        "With C the first of block_out_channels: from C to 4 C, and from 4 C to 4 C.",
    ),
    Question(
        "copy_entries",
        "2",
        "TODO (2) copies, among others, these parts of the UNet: {listed}. How many tensors does the state dict of "
        "each have?",
        draw_modules,
        lambda models, it: [len(models.unet.get_submodule(name).state_dict()) for name in it["names"]],
        "time_proj computes sines and cosines and has no weights; every layer with weights has a weight and a bias, "
        "and a residual layer has five of them where its width stays.",
    ),
    Question(
        "copy_resnet_entries",
        "2",
        "How many tensors in the UNet's state dict have a name that starts with `{name}.`?",
        draw_resnet,
        lambda models, it: sum(name.startswith(it["name"] + ".") for name in models.unet.state_dict()),
        "Weight and bias of norm1, conv1, time_emb_proj, norm2 and conv2, and of conv_shortcut where the width "
        "changes.",
    ),
    Question(
        "copy_missing_keys",
        "2",
        "Somebody writes `controlnet.load_state_dict(unet.state_dict(), strict=False)` for TODO (2). How many "
        "`missing_keys` does that call return, that is, tensors that ControlNet has and the UNet does not have?",
        nothing,
        lambda models, it: len(models.controlnet.load_state_dict(models.unet.state_dict(), strict=False).missing_keys),
        "Weight and bias of each zero convolution for a skip, of the mid block's, and of the embedding's eight layers.",
    ),
    Question(
        "copy_weight_shape",
        "2",
        "TODO (2) copies `{name}.conv1.weight`. What is its shape?",
        draw_resnet,
        lambda models, it: models.controlnet.get_submodule(it["name"]).conv1.weight.shape,
        "(out, in, 3, 3). Only the first layer of a block changes the width, from the block before.",
    ),
    Question(
        "copy_attention_shape",
        "2",
        "TODO (2) copies `{name}`, which reads the text. What is its shape?",
        draw_attention,
        lambda models, it: models.controlnet.state_dict()[it["name"]].shape,
        "A linear layer's weight is (out, in): in is cross_attention_dim, out the width of the block.",
    ),
    Question(
        "copy_shared",
        "2",
        "Somebody writes `controlnet.{name} = unet.{name}` instead of a copy, and then `unet.requires_grad_(False)`. "
        "How many of ControlNet's parameters are no longer trained?",
        draw_shared,
        frozen_with_it,
        "All of that module's: both models then have the same tensors. Unfrozen, training would change the UNet.",
    ),
    Question(
        "copy_nothing_parameters",
        "2",
        "TODO (2) has nothing to copy into `controlnet_cond_embedding.{name}`, as the UNet has no such layer. How "
        "many parameters does that layer have?",
        draw_layer_of_embedding,
        lambda models, it: models.count(models.controlnet.controlnet_cond_embedding.get_submodule(it["name"])),
        "3x3 kernels. conv_in reads 3 channels; of blocks, even ones keep the width, odd ones go to the next one.",
    ),
    Question(
        "copy_downsampler_shape",
        "2",
        "TODO (2) copies `{name}.conv.weight`. What is its shape, and what is the stride of its convolution?",
        draw_downsampler,
        lambda models, it: [
            models.controlnet.get_submodule(it["name"]).conv.weight.shape,
            models.controlnet.get_submodule(it["name"]).conv.stride[0],
        ],
        "Downsampling keeps the block's width and halves the sides.",
    ),
]
