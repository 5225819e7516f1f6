"""Questions on TODO (3), the features that go through the zero convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drawing import Configuration, Draw, Question, nothing

if TYPE_CHECKING:
    from .models import Models


def draw_index(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    """Not the first, which is what everybody knows."""
    return {"i": 1 + draw.below(configuration.num_skips - 1)}


def draw_height(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    height = configuration.height // 2 ** (1 + draw.below(configuration.num_blocks - 1))
    return {"height": height}


def first_of_height(models: Models, it: dict[str, Any]) -> int:
    return [residual.shape[2] for residual in models.down_residuals].index(it["height"])


def draw_block(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"block": draw.below(configuration.num_blocks - 1)}


def after_downsampling(models: Models, it: dict[str, Any]) -> int:
    return models.sources.index(f"down_blocks.{it['block']}.downsamplers.0")


def first_misfit(models: Models, it: dict[str, Any]) -> int:
    """Tried: the first zero convolution that does not take what it is given."""
    shifted = list(zip(models.features, models.controlnet.controlnet_down_blocks[1:]))
    return next(i for i, (feature, module) in enumerate(shifted) if models.fails(module, feature))


def draw_guess(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {**draw_index(draw, configuration), "scale": draw.choice((0.5, 0.6, 0.8, 1.2, 1.5, 2.0))}


QUESTIONS = [
    Question(
        "features_number",
        "3",
        "How many tensors are in `down_block_res_samples` after TODO (3)?",
        nothing,
        lambda models, it: len(models.down_residuals),
        "One of conv_in, one for each layer of each block, and one for each downsampling; the last block has none.",
    ),
    Question(
        "features_shape",
        "3",
        "What is the shape of `down_block_res_samples[{i}]` after TODO (3)?",
        draw_index,
        lambda models, it: models.down_residuals[it["i"]].shape,
        "Counted through the blocks: conv_in, then the layers of a block, then its downsampling, which halves the "
        "sides and keeps the width.",
    ),
    Question(
        "features_weight_shape",
        "3",
        "What is the shape of `controlnet_down_blocks[{i}].weight`?",
        draw_index,
        lambda models, it: models.controlnet.controlnet_down_blocks[it["i"]].weight.shape,
        "A 1x1 convolution that keeps the width of the feature with this index.",
    ),
    Question(
        "features_height_index",
        "3",
        "What is the smallest i for which `down_block_res_samples[i]` is {height} high?",
        draw_height,
        first_of_height,
        "The result of the downsampling that brings the latents to this height.",
    ),
    Question(
        "features_channels",
        "3",
        "List the number of channels of all tensors in `down_block_res_samples`, in their order.",
        nothing,
        lambda models, it: [residual.shape[1] for residual in models.down_residuals],
        "conv_in and each layer have their block's width; a downsampling has that of the block before it.",
    ),
    Question(
        "features_parameters",
        "3",
        "How many parameters does `controlnet_down_blocks[{i}]` have, through which TODO (3) sends one of the "
        "features?",
        draw_index,
        lambda models, it: models.count(models.controlnet.controlnet_down_blocks[it["i"]]),
        "With C the width of the feature with this index: C x C weights and C biases.",
    ),
    Question(
        "features_source",
        "3",
        "Which module of ControlNet computes the feature that TODO (3) gives to `controlnet_down_blocks[{i}]`? Write "
        "its name in full, like `down_blocks.0.resnets.0`.",
        draw_index,
        lambda models, it: models.sources[it["i"]],
        "In a block with attention a feature is taken after the attention, in one without after the residual layer.",
    ),
    Question(
        "features_downsampling_index",
        "3",
        "`down_blocks[{block}]` ends in a downsampling. At which index of `down_block_res_samples` is its result?",
        draw_block,
        after_downsampling,
        "The index of the block's last feature; index 0 is conv_in.",
    ),
    Question(
        "features_shifted",
        "3",
        "Somebody's TODO (3) begins with `zip(self.controlnet_down_blocks[1:], down_block_res_samples)`, so that "
        "every feature is given to the zero convolution of the next one. For which index of `down_block_res_samples` "
        "does this fail first?",
        nothing,
        first_misfit,
        "Where the next zero convolution has another width for the first time: a downsampling keeps the width, so it "
        "is the last feature of its block, before the first layer of a wider block.",
    ),
    Question(
        "features_bytes",
        "3",
        "How many bytes does `down_block_res_samples[{i}]` take in float16, for the inputs of this page?",
        draw_index,
        lambda models, it: 2 * models.down_residuals[it["i"]].numel(),
        "Two for each number of the shape (batch, channels, height, width).",
    ),
    Question(
        "features_guess_mode",
        "3",
        "`forward` is called with `guess_mode=True` and `conditioning_scale={scale}`. By which factor does it "
        "multiply the result of TODO (3) with index {i} in `down_block_res_samples`? Three digits will do.",
        draw_guess,
        lambda models, it: models.residual_factor(it["i"], it["scale"]),
        "Factors rise evenly in the exponent from 0.1 at index 0 to 1 at the mid block, which comes after the last "
        "skip; all are multiplied by conditioning_scale.",
    ),
]
