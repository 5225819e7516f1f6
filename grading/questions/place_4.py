"""Questions on TODO (4-1) and (4-2), where the UNet takes ControlNet's residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drawing import Configuration, Draw, Question, nothing

if TYPE_CHECKING:
    from .models import Models


def draw_other_layers(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"layers": draw.choice([n for n in (1, 2, 3, 4) if n != configuration.layers_per_block])}


def draw_up_block(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"j": draw.below(configuration.num_blocks)}


def draw_up_layer(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {**draw_up_block(draw, configuration), "k": draw.below(configuration.layers_per_block + 1)}


def draw_skip(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"i": draw.below(configuration.num_skips)}


def taken_by(models: Models, it: dict[str, Any]) -> str:
    """The layer whose input holds the skip connection."""
    (name,) = (f"up_blocks.{j}.resnets.{k}" for (j, k), i in models.skips_taken.items() if i == it["i"])
    return name


def first_shapes_that_differ(models: Models, it: dict[str, Any]) -> int:
    """Tried: the first sum that PyTorch refuses."""
    shifted = list(zip(models.skips, models.down_residuals[1:]))
    return next(i for i, (skip, residual) in enumerate(shifted) if models.fails(skip.add, residual))


def draw_image(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    """Pixels, so that every downsampling halves a whole number."""
    height, width = draw.sample((128, 192, 256, 320, 384, 448, 512, 576, 640, 768), 2)
    return {"height": height, "width": width, "batch": draw.choice((4, 7, 8))}


def mid_residual_for(models: Models, it: dict[str, Any]) -> tuple[int, ...]:
    """The latents have an eighth of the image's sides, as its condition's features show."""
    condition = models.tensor(it["batch"], 3, it["height"], it["width"])
    features = models.controlnet.controlnet_cond_embedding(condition)
    return models.with_inputs(it["batch"], *features.shape[2:]).mid_residual.shape


def draw_wider(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    return {"channels": configuration.block_out_channels[-1] + draw.choice((16, 32, 48, 64))}


def with_one_more_block(models: Models, it: dict[str, Any]) -> tuple[int, ...]:
    """As few layers as can be, and attention in none of the blocks: neither changes a shape."""
    asked = models.configuration
    changes = {
        "block_out_channels": (*asked.block_out_channels, it["channels"]),
        "down_block_types": ("DownBlock2D",) * (asked.num_blocks + 1),
        "layers_per_block": 1,
    }
    return models.changed(**changes).mid_residual.shape


def attended(models: Models, it: dict[str, Any]) -> list[int]:
    call = models.unet_calls["mid_block.attentions.0.transformer_blocks.0.attn2"]
    return [call.inputs[0].shape[1], call.named["encoder_hidden_states"].shape[2]]


SKIPS = [
    Question(
        "skips_number",
        "4-1",
        "The ControlNet was made from a UNet with `layers_per_block={layers}`, otherwise as on this page, and is used "
        "with the UNet of this page. How many residuals does it give, and how many skip connections are there?",
        draw_other_layers,
        lambda models, it: [models.number_of_residuals(it["layers"]), len(models.skips)],
        "conv_in, layers and downsamplings, counted twice. The UNet refuses it, as one for each is needed.",
    ),
    Question(
        "skips_indices",
        "4-1",
        "Which indices of `down_block_res_samples` are used in `up_blocks[{j}]`, in the order in which its layers "
        "take them?",
        draw_up_block,
        lambda models, it: [i for (j, k), i in models.skips_taken.items() if j == it["j"]],
        "Each up block has layers_per_block + 1 layers, and the skips are taken from the end.",
    ),
    Question(
        "skips_concatenated",
        "4-1",
        "A skip connection with its residual arrives in the input of `up_blocks[{j}].resnets[{k}]`. How many "
        "channels does that input have?",
        draw_up_layer,
        lambda models, it: models.unet_calls[f"up_blocks.{it['j']}.resnets.{it['k']}"].inputs[0].shape[1],
        "What came from below or from the layer before, and the skip's channels, side by side.",
    ),
    Question(
        "skips_taken_by",
        "4-1",
        "TODO (4-1) adds a residual to `down_block_res_samples[{i}]`. Which layer of the decoder gets the sum? Write "
        "its name in full, like `up_blocks.0.resnets.0`.",
        draw_skip,
        taken_by,
        "The last skip goes to the first layer of up_blocks[0], and so on back to skip 0, which the very last layer "
        "gets.",
    ),
    Question(
        "skips_in_place",
        "4-1",
        "Somebody adds the residuals in place (`skip += residual`), which changes the mid block's input, too. What "
        "are the index and the shape of that skip connection?",
        nothing,
        lambda models, it: [models.skip_at_mid_block, models.unet_calls["mid_block"].inputs[0].shape],
        "The last skip is the same tensor as the last down block's output, which the mid block takes.",
    ),
    Question(
        "skips_shifted",
        "4-1",
        "Somebody's TODO (4-1) begins with `zip(down_block_res_samples, down_block_additional_residuals[1:])`. For "
        "which index of `down_block_res_samples` does the sum fail first, because the shapes do not fit?",
        nothing,
        first_shapes_that_differ,
        "The next residual has other sides for the first time after the first block's last layer, where it is "
        "downsampled.",
    ),
    Question(
        "skips_shape",
        "4-1",
        "What shape must `down_block_additional_residuals[{i}]` have?",
        draw_skip,
        lambda models, it: models.skips[it["i"]].shape,
        "That of the skip with this index: conv_in, then the layers of each block, then its downsampling.",
    ),
]

MID_BLOCK = [
    Question(
        "mid_shape",
        "4-2",
        "What shape must `mid_block_additional_residual` have?",
        nothing,
        lambda models, it: models.unet_calls["mid_block"].output.shape,
        "The last width, and the latents' sides halved by all blocks but the last.",
    ),
    Question(
        "mid_image_shape",
        "4-2",
        "{batch} images of {height} x {width} px (height x width) are drawn with these models. What is the shape of "
        "`mid_block_additional_residual` in a call with a batch of {batch}?",
        draw_image,
        mid_residual_for,
        "Latents have an eighth of the image's sides; every block but the last halves them.",
    ),
    Question(
        "mid_concatenated",
        "4-2",
        "After TODO (4-2), `up_blocks[0].resnets[0]` puts `sample` and one skip connection side by side. How many "
        "channels come together?",
        nothing,
        lambda models, it: models.unet_calls["up_blocks.0.resnets.0"].inputs[0].shape[1],
        "The mid block and the last skip have the last width, each.",
    ),
    Question(
        "mid_parameters",
        "4-2",
        "What TODO (4-2) adds was computed by `controlnet_mid_block`. How many parameters does that module have?",
        nothing,
        lambda models, it: models.count(models.controlnet.controlnet_mid_block),
        "A 1x1 convolution that keeps the last width C: C x C weights and C biases.",
    ),
    Question(
        "mid_sums",
        "4-2",
        "How many sums of two numbers does TODO (4-2) compute in one call with the inputs of this page?",
        nothing,
        lambda models, it: models.unet_calls["mid_block"].output.numel(),
        "As many as `sample` has numbers: batch x channels x height x width at the mid block.",
    ),
    Question(
        "mid_attention",
        "4-2",
        "The `sample` that TODO (4-2) changes comes from the mid block, whose attention lets every place of the "
        "feature map look at every token of the text. How many places are there in one image, and how many numbers "
        "is a token of the text made of?",
        nothing,
        attended,
        "Height times width at the mid block; cross_attention_dim.",
    ),
    Question(
        "mid_added_shape",
        "4-2",
        "Both models get one more down block (`DownBlock2D`) of {channels} channels at the end. What is the shape of "
        "`mid_block_additional_residual` then?",
        draw_wider,
        with_one_more_block,
        "The new width; the block that was the last before now halves the sides, odd ones rounded up.",
    ),
    Question(
        "mid_bytes",
        "4-2",
        "How many bytes does `mid_block_additional_residual` take in float32, for the inputs of this page?",
        nothing,
        lambda models, it: 4 * models.mid_residual.numel(),
        "Four for each number of the shape.",
    ),
    Question(
        "mid_decoder_shape",
        "4-2",
        "`up_blocks[0]` is what takes the result of TODO (4-2) first. What is the shape of its output?",
        nothing,
        lambda models, it: models.unet_calls["up_blocks.0"].output.shape,
        "The decoder's first block keeps the last width and doubles the sides.",
    ),
]

QUESTIONS = SKIPS + MID_BLOCK
