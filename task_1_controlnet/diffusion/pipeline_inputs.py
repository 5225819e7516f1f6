"""What the pipeline is called with: brought to one form, or refused in a sentence."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

THEIRS = "diffusers.StableDiffusionControlNetPipeline"

# Arguments of its call that ours does not take, and what to do instead.
UNSUPPORTED_ARGUMENTS = {
    "ip_adapter_image": f"IP-Adapter needs {THEIRS}, which loads the same folder",
    "ip_adapter_image_embeds": f"IP-Adapter needs {THEIRS}, which loads the same folder",
    "guidance_rescale": "no pipeline with ControlNet takes it",
    "callback": "give callback_on_step_end",
    "callback_steps": "give callback_on_step_end, which may look at the step's number",
}


def split_conditions(
    image: Any, num_controlnets: int | None, num_prompts: int
) -> list[list[Image.Image | torch.Tensor]]:
    """A list of single images for each ControlNet; `num_controlnets` is None where `image` is not a list of entries."""
    if num_controlnets is None:
        entries = [image]
    elif isinstance(image, (list, tuple)) and len(image) == num_controlnets:
        entries = list(image)
    else:
        raise ValueError(f"{num_controlnets} ControlNets need image to be a list with one entry for each.")
    conditions = [single_images(entry) for entry in entries]
    for images in conditions:
        if len(images) not in (1, num_prompts):
            raise ValueError(
                f"{len(images)} condition image(s) for {num_prompts} prompt(s): give one for all, or one for each."
            )
    return conditions


def single_images(image: Any) -> list[Image.Image | torch.Tensor]:
    """PIL images as they are; arrays and tensors as tensors of shape (channels, height, width) in 0..1."""
    images: list[Image.Image | torch.Tensor] = []
    for entry in image if isinstance(image, (list, tuple)) else [image]:
        if isinstance(entry, Image.Image):
            images.append(entry)
        elif isinstance(entry, (np.ndarray, torch.Tensor)) and entry.ndim in (2, 3, 4):
            images.extend(unit_tensors(entry))
        else:
            raise ValueError(
                f"A condition image is a PIL image, or an array or a tensor of 2 to 4 dimensions, not {kind(entry)}."
            )
    return images


def unit_tensors(pixels: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """Tensors of shape (channels, height, width) in 0..1, one for each image in the array or tensor."""
    if isinstance(pixels, np.ndarray):
        largest = 255 if pixels.dtype == np.uint8 else 1
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels = torch.from_numpy(np.moveaxis(pixels, -1, -3).astype(np.float32, order="C"))
    else:
        largest = 255 if pixels.dtype == torch.uint8 else 1
        pixels = pixels[None] if pixels.ndim == 2 else pixels
    pixels = pixels.float() / largest
    # Written so that a NaN is refused, too. The margin is for half precision, whose next number above 1 is 1.001.
    # Images in -1..1 or 0..255 would not fail: they would be drawn for another condition than the one that was meant.
    if not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
        raise ValueError(
            f"A condition image has values in {pixels.min():.3g}..{pixels.max():.3g}; it takes floats in 0..1 or bytes."
        )
    return list(pixels) if pixels.ndim == 4 else [pixels]


def image_size(
    condition: Image.Image | torch.Tensor, height: int | None, width: int | None, factor: int
) -> tuple[int, int]:
    """The images' height and width: as asked for, else the condition's, rounded down to what can be decoded.

    Raises:
        ValueError: if one asked for is no multiple of the autoencoder's `factor`, or the condition is too small.
    """
    own_size = condition.size[::-1] if isinstance(condition, Image.Image) else condition.shape[-2:]
    size = []
    for name, asked, own in zip(("height", "width"), (height, width), own_size):
        if asked is None and own < factor:
            raise ValueError(f"The condition image's {name} is {own} px; it must be at least {factor}.")
        # A size that was asked for is not changed in silence; one that nobody asked for is.
        asked = own - own % factor if asked is None else asked
        check_count(name, asked)
        if asked % factor != 0:
            raise ValueError(f"{name} is {asked}, which is not a multiple of {factor}.")
        size.append(asked)
    return size[0], size[1]


def condition_batch(
    images: Sequence[Image.Image | torch.Tensor],
    to_tensor: Callable[[Image.Image], torch.Tensor],
    size: tuple[int, int],
    channels: int,
    batch_size: int,
) -> torch.Tensor:
    """One ControlNet's condition, (batch_size, channels, height, width) in 0..1, each image as often as it is used.

    Raises:
        ValueError: if an image does not have the channels that the ControlNet takes.
    """
    tensors = []
    for image in images:
        tensor = to_tensor(image) if isinstance(image, Image.Image) else F.interpolate(image[None], size=size)
        if tensor.shape[1] not in (1, channels):
            raise ValueError(f"A condition image has {tensor.shape[1]} channels; ControlNet takes {channels}.")
        tensors.append(tensor.expand(-1, channels, -1, -1))  # grey serves all channels
    # The images of one prompt stand beside each other, as its embeddings do: a, a, b, b and not a, b, a, b.
    return torch.cat(tensors).repeat_interleave(batch_size // len(tensors), dim=0)


def kind(value: Any) -> str:
    dimensions = f" of {value.ndim} dimensions" if hasattr(value, "ndim") else ""
    return type(value).__name__ + dimensions


def check_is_ours(name: str, model: Any, expected: type) -> None:
    # diffusers' models of these names load the same files and draw the same pictures: with one of them, nothing that
    # was written at the TODO places would have run, and it would look as if all were right.
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, expected):
        raise ValueError(
            f"{name} is {type(model).__module__}.{type(model).__name__}; this pipeline runs {expected.__module__}."
            f"{expected.__name__}. Its from_pretrained loads the same files."
        )


def check_supported(arguments: dict[str, Any]) -> None:
    """Raises for arguments of the call that it does not take; those of diffusers may be there as None."""
    for name, value in arguments.items():
        if name not in UNSUPPORTED_ARGUMENTS:
            raise TypeError(f"The pipeline's call has no argument {name!r}.")
        if value is not None:
            raise ValueError(f"{name} is not supported: {UNSUPPORTED_ARGUMENTS[name]}.")


def check_count(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer.")


def check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; it must be a number.")


def check_kind(name: str, value: Any, expected: type) -> None:
    if value is not None and not isinstance(value, expected):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a {expected.__name__}.")


def check_settings(
    num_inference_steps: Any,
    num_images_per_prompt: Any,
    guidance_scale: Any,
    eta: Any,
    generator: Any,
    output_type: Any,
) -> None:
    """Raises ValueError for one that is of a wrong type or out of range."""
    check_count("num_inference_steps", num_inference_steps)
    check_count("num_images_per_prompt", num_images_per_prompt)
    check_number("guidance_scale", guidance_scale)
    check_number("eta", eta)
    check_generator(generator)
    check_member("output_type", output_type, OUTPUT_TYPES)


def check_generator(generator: Any) -> None:
    for entry in generator if isinstance(generator, list) else [generator]:
        check_kind("generator", entry, torch.Generator)


def check_clip_skip(clip_skip: Any, prompt: list[str] | None, text_encoder: torch.nn.Module) -> None:
    if clip_skip is None or prompt is None:  # embeddings that were given have been through all layers that they shall
        return
    layers = text_encoder.config.num_hidden_layers
    if not isinstance(clip_skip, Integral) or not 0 <= clip_skip <= layers:
        raise ValueError(f"clip_skip is {clip_skip!r}; the text encoder has {layers} layers to leave out.")


def check_latents(latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    check_kind("latents", latents, torch.Tensor)
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents are {tuple(latents.shape)}; prompts and size ask for {shape}.")


def check_member(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}.")


def check_control_interval(starts: Sequence[float], ends: Sequence[float]) -> None:
    for start, end in zip(starts, ends):
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"control_guidance_start is {start} and control_guidance_end {end}; 0 <= start < end <= 1 must hold."
            )


def per_controlnet(name: str, value: float | Sequence[float], num_controlnets: int) -> list[float]:
    """One number for each ControlNet, from one for all or a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * num_controlnets
    if not all(isinstance(v, Real) for v in values):
        raise ValueError(f"{name} is {value!r}; it must be a number, or a list with one for each ControlNet.")
    if len(values) != num_controlnets:
        raise ValueError(f"{name} has {len(values)} entries for {num_controlnets} ControlNet(s).")
    return values


def check_prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    text_channels: int,
) -> tuple[list[str] | None, list[str] | None, int]:
    """The prompts and the negative prompts, each as a list of the same length or None, and that length."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("Give either prompt or prompt_embeds.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("Give negative_prompt or negative_prompt_embeds, not both.")
    embeds = [e for e in (prompt_embeds, negative_prompt_embeds) if e is not None]
    # Both become one batch, half and half: they must have the same shape.
    if not all(isinstance(e, torch.Tensor) and e.ndim == 3 for e in embeds) or len({e.shape for e in embeds}) == 2:
        raise ValueError("prompt_embeds and negative_prompt_embeds must be (prompts, tokens, channels) tensors alike.")
    prompts = as_strings("prompt", prompt)
    num_prompts = len(prompts) if prompt_embeds is None else len(prompt_embeds)
    negative_prompts = as_strings("negative_prompt", negative_prompt)
    if negative_prompts is not None and isinstance(negative_prompt, str):
        negative_prompts *= num_prompts
    for name, negative in (("negative_prompt", negative_prompts), ("negative_prompt_embeds", negative_prompt_embeds)):
        if negative is not None and len(negative) != num_prompts:
            raise ValueError(f"{name} has {len(negative)} entries for {num_prompts} prompts.")
    if embeds and embeds[0].shape[-1] != text_channels:
        raise ValueError(f"prompt_embeds have {embeds[0].shape[-1]} channels; the UNet takes {text_channels}.")
    return prompts, negative_prompts, num_prompts


def as_strings(name: str, value: str | Sequence[str] | None) -> list[str] | None:
    if value is None:
        return None
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings or not all(isinstance(s, str) for s in strings):
        raise ValueError(f"{name} must be a string or a list of strings, not {value!r}.")
    return list(strings)


class StepCallback:
    """What the user has called after each step, with the tensors that it asks for; false if there is none.

    Raises:
        ValueError: if it asks for or returns a tensor that there is not.
    """

    def __init__(self, pipeline: Any, function: Any, tensor_inputs: Any) -> None:
        self.pipeline, self.function = pipeline, function
        self.allowed = pipeline._callback_tensor_inputs
        self.tensor_inputs = getattr(function, "tensor_inputs", tensor_inputs or ())
        for name in self.tensor_inputs:
            check_member("callback_on_step_end_tensor_inputs", name, self.allowed)

    def __bool__(self) -> bool:
        return self.function is not None

    def __call__(self, step: int, timestep: torch.Tensor, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
        """The latents, prompt_embeds and negative_prompt_embeds to go on with."""
        named = dict(zip(self.allowed, tensors))
        shown = {name: named[name] for name in self.tensor_inputs}
        changed = self.function(self.pipeline, step, timestep, shown) or {}
        for name in changed:
            check_member("callback_on_step_end returned", name, self.allowed)
        return list({**named, **changed}.values())
