"""Questions on TODO (1), the zero convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drawing import Configuration, Draw, Question, nothing

if TYPE_CHECKING:
    from .models import Models

WIDTHS = (12, 20, 24, 28, 36, 40, 48, 56, 60, 72, 80, 96)


def draw_widths(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    a, b = draw.sample(WIDTHS, 2)
    return {"a": a, "b": b}


def draw_kernel(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    kernel = draw.choice((3, 5, 7))
    return {**draw_widths(draw, configuration), "kernel": kernel, "padding": draw.below(kernel // 2) + 1}


def draw_strided(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    size = {"height": draw.choice(range(17, 33)), "width": draw.choice(range(17, 33))}
    return {**draw_kernel(draw, configuration), **size, "stride": draw.choice((2, 3)), "batch": draw.choice((2, 3, 4))}


def padding_that_keeps(models: Models, it: dict[str, Any]) -> int:
    """Found by trying them."""
    image = models.tensor(1, it["a"], 32, 32)
    paddings = range(it["kernel"])
    return next(
        p
        for p in paddings
        if models.zero_convolution(it["a"], it["b"], it["kernel"], 1, p)(image).shape[2:] == (32, 32)
    )


def without_padding(models: Models, it: dict[str, Any]) -> tuple[int, ...]:
    conv_out = models.controlnet.controlnet_cond_embedding.conv_out
    unpadded = models.zero_convolution(conv_out.in_channels, conv_out.out_channels, conv_out.kernel_size[0])
    return tuple(unpadded(models.controlnet_calls["controlnet_cond_embedding.conv_out"].inputs[0]).shape[2:])


def draw_trained(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    """One parameter each of the zero convolutions, the copy and the condition's embedding, in any order."""
    zero = f"controlnet_down_blocks.{draw.below(configuration.num_skips)}.weight"
    last = "controlnet_cond_embedding.conv_out.weight"
    copied = ("conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight")
    early = ("conv_in.weight", *(f"blocks.{i}.weight" for i in range(6)))
    names = [draw.choice((zero, "controlnet_mid_block.weight")), draw.choice((last, *copied))]
    names = draw.sample([*names, f"controlnet_cond_embedding.{draw.choice(early)}"], 3)
    return {"names": names, "listed": ", ".join(f"`{name}`" for name in names)}


QUESTIONS = [
    Question(
        "zero_parameters",
        "1",
        "How many trainable parameters does the module have that `zero_convolution({a}, {b})` returns?",
        draw_widths,
        lambda models, it: models.count(models.zero_convolution(it["a"], it["b"])),
        "By default the kernel is 1x1: one weight for each pair of input and output channel, one bias for each "
        "output channel. All start at zero, and all are trained.",
    ),
    Question(
        "zero_kernel_parameters",
        "1",
        "How many parameters does `zero_convolution({a}, {b}, kernel_size={kernel}, padding={padding})` have?",
        draw_kernel,
        lambda models, it: models.count(models.zero_convolution(it["a"], it["b"], it["kernel"], 1, it["padding"])),
        "Kernel x kernel weights for each pair of channels, one bias for each output channel; padding has none.",
    ),
    Question(
        "zero_output_shape",
        "1",
        "A tensor of shape `({batch}, {a}, {height}, {width})` goes through `zero_convolution({a}, {b}, "
        "kernel_size={kernel}, stride={stride}, padding={padding})`. What is the shape of the result?",
        draw_strided,
        lambda models, it: (
            models.zero_convolution(it["a"], it["b"], it["kernel"], it["stride"], it["padding"])(
                models.tensor(it["batch"], it["a"], it["height"], it["width"])
            ).shape
        ),
        "Each side becomes (side + 2 padding - kernel) / stride + 1, rounded down; the channels are the second "
        "argument.",
    ),
    Question(
        "zero_weight_shape",
        "1",
        "What is the shape of the `weight` of `zero_convolution({a}, {b}, kernel_size={kernel})`?",
        draw_kernel,
        lambda models, it: models.zero_convolution(it["a"], it["b"], it["kernel"]).weight.shape,
        "PyTorch keeps output channels first, then input channels, then the kernel's height and width.",
    ),
    Question(
        "zero_embedding_parameters",
        "1",
        "`controlnet_cond_embedding` ends in a zero convolution, `conv_out`. How many parameters does it have here?",
        nothing,
        lambda models, it: models.count(models.controlnet.controlnet_cond_embedding.conv_out),
        "From the last of conditioning_embedding_out_channels to the first of block_out_channels with a 3x3 kernel, "
        "and a bias for each output channel.",
    ),
    Question(
        "zero_number",
        "1",
        "How often is `zero_convolution` called while the ControlNet of this page is built?",
        nothing,
        lambda models, it: models.zero_convolutions_made,
        "Once for each skip connection, once for the mid block, and once for the last layer of the condition's "
        "embedding.",
    ),
    Question(
        "zero_padding",
        "1",
        "Height and width must stay as they are in `zero_convolution({a}, {b}, kernel_size={kernel}, padding=?)`. "
        "Which `padding` does that?",
        draw_kernel,
        padding_that_keeps,
        "(kernel - 1) / 2, as the stride is 1 by default.",
    ),
    Question(
        "zero_forgotten_padding",
        "1",
        "Somebody's `zero_convolution` ignores its argument `padding` and takes 0. What height and width does the "
        "result of `controlnet_cond_embedding` then have for the condition of this page?",
        nothing,
        without_padding,
        "Its last layer has a 3x3 kernel: without padding, each side loses two. The sum with conv_in's output then "
        "fails.",
    ),
    Question(
        "zero_first_gradients",
        "1",
        "A fresh ControlNet is trained, its UNet is frozen. In which training step (1, 2, 3, ...) does each of these "
        "first have a gradient that is not zero: {listed}?",
        draw_trained,
        lambda models, it: models.first_gradients(it["names"]),
        "A zero convolution that is still zero lets no gradient through, but has one itself. So the output ones "
        "learn in step 1, the copy and the embedding's conv_out in step 2, the rest of the embedding in step 3.",
    ),
]
