"""Sampling with ControlNet: prompt and condition image in, image out.

Loading, saving, text encoding, LoRA and offloading are those of diffusers' pipeline. The sampling loop is here, and it
runs our UNet and our ControlNet. Same weights, same seed: the pixels equal diffusers' to the bit on CPU in float32.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence, Union

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.controlnet.pipeline_controlnet import MultiControlNetModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from PIL import Image

from finetune.checkpoints import give_rights

from .controlnet import ControlNetModel, ControlNetOutput
from .unets.unet_2d_condition import UNet2DConditionModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# Arguments of `from_pretrained` that concern each model, not only the pipeline.
LOADING_ARGUMENTS = (
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "proxies",
    "revision",
    "token",
    "torch_dtype",
    "use_safetensors",
    "variant",
)


class MultiControlNet(MultiControlNetModel):
    """Several ControlNets, `nets`, that steer one UNet together."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: Sequence[torch.Tensor],
        conditioning_scale: Sequence[float],
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The sum of the ControlNets' residuals; arguments and shapes are those of `ControlNetModel.forward`.

        `controlnet_cond` and `conditioning_scale` have one entry for each. One whose scale is 0 is not run; there must
        be one that is.
        """
        residuals = [
            net(sample, timestep, encoder_hidden_states, condition, scale, guess_mode=guess_mode, return_dict=False)
            for net, condition, scale in zip(self.nets, controlnet_cond, conditioning_scale)
            if scale != 0
        ]
        down_block_res_samples, mid_block_res_sample = residuals[0]
        for down, mid in residuals[1:]:
            down_block_res_samples = tuple(a + b for a, b in zip(down_block_res_samples, down))
            mid_block_res_sample = mid_block_res_sample + mid
        if not return_dict:
            return down_block_res_samples, mid_block_res_sample
        return ControlNetOutput(down_block_res_samples, mid_block_res_sample)


class StableDiffusionControlNetPipeline(diffusers.StableDiffusionControlNetPipeline):
    """Draws what a prompt says, where condition images say.

    Args:
        unet: our `UNet2DConditionModel`.
        controlnet: our `ControlNetModel`, or a list of them, whose residuals add up.
        safety_checker: is run on the images if there is one. Without it nothing filters them.

    The other arguments are those of `diffusers.StableDiffusionControlNetPipeline`.

    Raises:
        ValueError: if the UNet or a ControlNet is not ours, but for example diffusers' of the same name.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        controlnet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=True,
    ):
        check_is_ours("unet", unet, UNet2DConditionModel)
        several = controlnet if isinstance(controlnet, (list, tuple)) else getattr(controlnet, "nets", None)
        for net in [controlnet] if several is None else several:
            check_is_ours("controlnet", net, ControlNetModel)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet if several is None else MultiControlNet(several),
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )

    # diffusers' `from_pretrained` and `from_pipe` look at the types of models, and not all its versions read strings.
    __init__.__annotations__ = {
        "vae": diffusers.AutoencoderKL,
        "unet": UNet2DConditionModel,
        "controlnet": Union[ControlNetModel, List[ControlNetModel], MultiControlNet],
    }

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> StableDiffusionControlNetPipeline:
        """Loads a pipeline from a folder or the hub, with our classes in the places of the UNet and the ControlNet.

        The arguments are those of `diffusers.DiffusionPipeline.from_pretrained`, components to replace included:
        pass `controlnet=...` to put a ControlNet (or a list) on a plain Stable Diffusion model. Where no data type is
        asked for, all is loaded in float32.

        Raises:
            ValueError: if the model comes without a ControlNet and none is given.
        """
        path, given = pretrained_model_name_or_path, set(kwargs)
        arguments = {name: kwargs[name] for name in LOADING_ARGUMENTS if name in kwargs}
        if "controlnet" not in kwargs:
            in_index = cls.load_config(path, **arguments).get("controlnet", (None, None))[1]
            if in_index is None:
                raise ValueError(f"{path} holds no ControlNet: pass controlnet=ControlNetModel.from_pretrained(...).")
            nets = [load_component(ControlNetModel, path, "controlnet", arguments)]
            while os.path.isdir(os.path.join(path, f"controlnet_{len(nets)}")):
                nets.append(load_component(ControlNetModel, path, f"controlnet_{len(nets)}", arguments))
            kwargs["controlnet"] = nets if in_index.startswith("Multi") else nets[0]
        if isinstance(kwargs["controlnet"], (list, tuple)):  # diffusers takes a list only if the index names none
            kwargs["controlnet"] = MultiControlNet(kwargs["controlnet"])
        if "unet" not in kwargs:
            kwargs["unet"] = load_component(UNet2DConditionModel, path, "unet", arguments)
        pipeline = super().from_pretrained(path, **kwargs)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            # diffusers loads in float32 what transformers 5 leaves in the data type of the file.
            for name, component in pipeline.components.items():
                if isinstance(component, torch.nn.Module) and name not in given:
                    component.float()
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves as diffusers' pipeline does, into a folder that diffusers' pipeline loads with its own classes."""
        controlnet = ("diffusers", "ControlNetModel")
        if hasattr(self.controlnet, "nets"):
            # Older versions keep this class in their module `controlnet`, and look for it there.
            library = "diffusers" if hasattr(diffusers, "MultiControlNetModel") else "controlnet"
            controlnet = (library, "MultiControlNetModel")
        self.register_to_config(unet=("diffusers", "UNet2DConditionModel"), controlnet=controlnet)
        super().save_pretrained(save_directory, *args, **kwargs)
        give_rights(*Path(save_directory).glob("*/*.safetensors"))

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generates `num_images_per_prompt` images for each prompt.

        Args:
            prompt: one or several.
            image: the condition: a PIL image, a numpy array ((height, width), (height, width, channels) or a batch of
                such), a tensor ((channels, height, width) or a batch), or a list of these. Arrays and tensors are
                floats in 0..1 or bytes; grey images serve all channels. One image for all prompts, or one for each.
                With several ControlNets: a list that has one such entry for each ControlNet (if the entries are lists,
                diffusers' pipeline wants them the other way round).
            height, width: of the images, in pixels, multiples of the autoencoder's factor (8). The default is the size
                of the first condition image, rounded down to such a multiple. Condition images of another size are
                resized to it, the aspect ratio not kept: PIL images by Lanczos' filter, others to the nearest pixel.
            num_inference_steps: as the scheduler counts them.
            guidance_scale: of classifier-free guidance, which is off at 1 and below.
            negative_prompt: one for all prompts, or one for each; without guidance it is ignored.
            eta: of DDIM, 0..1; schedulers that do not know it ignore it.
            generator: the source of all random numbers, or a list with one for each image.
            latents: initial noise of unit variance, (images, 4, height / 8, width / 8), instead of random.
            prompt_embeds, negative_prompt_embeds: (prompts, tokens, channels), instead of the prompts.
            output_type: "pil" for a list of PIL images, "np" for an array (images, height, width, 3) in 0..1, "pt" for
                a tensor (images, 3, height, width) in 0..1, "latent" for the latents, not decoded.
            return_dict: whether to return an output with `.images` and `.nsfw_content_detected`, or a tuple of the two.
            cross_attention_kwargs: for the UNet's attention processors; `{"scale": s}` scales LoRA's share.
            controlnet_conditioning_scale: a factor on the residuals, for all ControlNets or for each.
            guess_mode: steer only the conditional half of the guidance, the coarse features most; it needs no prompt.
            control_guidance_start, control_guidance_end: the part of the steps, within 0..1, in which ControlNet is
                heard, for all ControlNets or for each.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step. It may return
                a dict with new `latents` and `prompt_embeds`. With guidance, `prompt_embeds` holds the negative
                embeddings in its first half; `negative_prompt_embeds` is only to be read. Setting
                `pipeline._interrupt` ends the loop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of "latents", "prompt_embeds" and
                "negative_prompt_embeds".

        Raises:
            ValueError: if inputs are missing, of a wrong type, do not fit together, or are out of range.
        """
        several, nets = hasattr(self.controlnet, "nets"), getattr(self.controlnet, "nets", [self.controlnet])
        prompt, negative_prompt, num_prompts = check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        check_count("num_inference_steps", num_inference_steps)
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_member("output_type", output_type, OUTPUT_TYPES)
        tensor_inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        for name in tensor_inputs:
            check_member("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        scales = per_controlnet("controlnet_conditioning_scale", controlnet_conditioning_scale, len(nets))
        starts = per_controlnet("control_guidance_start", control_guidance_start, len(nets))
        ends = per_controlnet("control_guidance_end", control_guidance_end, len(nets))
        check_control_interval(starts, ends)

        # Callbacks read these through the library's properties, and may change them from one step to the next.
        self._guidance_scale, self._cross_attention_kwargs = guidance_scale, cross_attention_kwargs
        self._interrupt = False
        attention_kwargs = dict(cross_attention_kwargs or {})
        lora_scale = attention_kwargs.pop("scale", None)
        device, num_images = self._execution_device, num_prompts * num_images_per_prompt

        images = split_conditions(image, len(nets) if several else None, num_prompts)
        height, width = self.image_size(images[0][0], height, width)
        conditions = [self.prepare_condition(*pair, height, width, num_images) for pair in zip(nets, images)]
        conditions = [condition.to(device, net.dtype) for condition, net in zip(conditions, nets)]
        embedded: dict[bool, list[torch.Tensor]] = {}  # the conditions for the whole batch, and for one half of it

        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
        )
        if self.do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        shape = (num_images, self.unet.config.in_channels)
        check_latents(latents, (*shape, height // self.vae_scale_factor, width // self.vae_scale_factor))
        latents = self.prepare_latents(*shape, height, width, prompt_embeds.dtype, device, generator, latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        with lora_scaled(self.unet, lora_scale), text_projected_once(self.unet, *nets) as forget_text:
            for i, t in enumerate(self.progress_bar(timesteps)):
                # fmt: off
                guided = self.do_classifier_free_guidance
                latent_model_input = torch.cat([latents] * 2) if guided else latents                # (2 * B, 4, H, W)
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)

                step_scales = scales_at(i / len(timesteps), (i + 1) / len(timesteps), scales, starts, ends)
                doubled = guided and not guess_mode
                if doubled not in embedded:  # once: it does not depend on the timestep
                    embedded[doubled] = [embed(*pair, 1 + doubled) for pair in zip(nets, conditions)]
                down_block_res_samples, mid_block_res_sample = self.control_residuals(
                    latent_model_input, t, prompt_embeds, embedded[doubled], step_scales, guided, guess_mode
                )
                noise_pred = self.unet(                                                             # (2 * B, 4, H, W)
                    latent_model_input,
                    t,
                    encoder_hidden_states=prompt_embeds,                                            # (2 * B, tokens, C)
                    cross_attention_kwargs=attention_kwargs,
                    down_block_additional_residuals=down_block_res_samples,
                    mid_block_additional_residual=mid_block_res_sample,
                    return_dict=False,
                )[0]
                if guided:
                    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
                    noise_pred = noise_pred_uncond + self.guidance_scale * (noise_pred_text - noise_pred_uncond)
                latents = self.scheduler.step(                                                      # (B, 4, H, W)
                    noise_pred, t, latents, **extra_step_kwargs, return_dict=False
                )[0]
                # fmt: on

                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": prompt_embeds}
                    tensors["negative_prompt_embeds"] = negative_prompt_embeds
                    changed = callback_on_step_end(self, i, t, {name: tensors[name] for name in tensor_inputs}) or {}
                    latents = changed.get("latents", latents)
                    prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                    forget_text()  # a callback may change anything, a LoRA too
                if self._interrupt:
                    break

        images, has_nsfw_concept = latents, None
        if output_type != "latent":
            latents = latents / self.vae.config.scaling_factor
            images = self.vae.decode(latents, return_dict=False, generator=generator)[0]
            images, has_nsfw_concept = self.run_safety_checker(images, device, prompt_embeds.dtype)
        # What the checker blacks out it leaves at 0, which is black only if it is not taken for the middle of -1..1.
        do_denormalize = [not flagged for flagged in has_nsfw_concept or [False] * num_images]
        images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=do_denormalize)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, has_nsfw_concept
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=has_nsfw_concept)

    def control_residuals(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        conditions: Sequence[torch.Tensor],
        scales: Sequence[float],
        guided: bool,
        guess_mode: bool,
    ) -> tuple[tuple[torch.Tensor, ...] | None, torch.Tensor | None]:
        """What the UNet is to add to its skip connections and its mid block; (None, None) where every scale is 0.

        With guidance, `sample` and `prompt_embeds` hold the unconditional half of the batch and then the conditional,
        and so do the residuals. Conditions, as images or embedded, are for the halves that see them: with `guess_mode`
        only the conditional one.
        """
        if not any(scales):
            return None, None
        conditional_half_only = guess_mode and guided
        if conditional_half_only:
            sample, prompt_embeds = sample.chunk(2)[1], prompt_embeds.chunk(2)[1]
        if not hasattr(self.controlnet, "nets"):
            conditions, scales = conditions[0], scales[0]
        down_block_res_samples, mid_block_res_sample = self.controlnet(
            sample, timestep, prompt_embeds, conditions, scales, guess_mode=guess_mode, return_dict=False
        )
        if conditional_half_only:
            down_block_res_samples = tuple(torch.cat([torch.zeros_like(r), r]) for r in down_block_res_samples)
            mid_block_res_sample = torch.cat([torch.zeros_like(mid_block_res_sample), mid_block_res_sample])
        return down_block_res_samples, mid_block_res_sample

    def image_size(
        self, condition: Image.Image | torch.Tensor, height: int | None, width: int | None
    ) -> tuple[int, int]:
        """The images' height and width: as asked for, else the condition's, rounded down to what can be decoded.

        Raises:
            ValueError: if one asked for is no multiple of the autoencoder's factor, or the condition is too small.
        """
        factor = self.vae_scale_factor
        own_size = condition.size[::-1] if isinstance(condition, Image.Image) else condition.shape[-2:]
        size = []
        for name, asked, own in zip(("height", "width"), (height, width), own_size):
            if asked is None and own < factor:
                raise ValueError(f"The condition image's {name} is {own} px; it must be at least {factor}.")
            asked = own - own % factor if asked is None else asked
            check_count(name, asked)
            if asked % factor != 0:
                raise ValueError(f"{name} is {asked}, which is not a multiple of {factor}.")
            size.append(asked)
        return size[0], size[1]

    def prepare_condition(
        self,
        controlnet: ControlNetModel,
        images: Sequence[Image.Image | torch.Tensor],
        height: int,
        width: int,
        batch_size: int,
    ) -> torch.Tensor:
        """One ControlNet's condition, (batch_size, channels, height, width) in 0..1, each image as often as it is used.

        Raises:
            ValueError: if an image does not have the channels that the ControlNet takes.
        """
        channels, tensors = controlnet.config.conditioning_channels, []
        for image in images:
            if isinstance(image, Image.Image):
                tensor = self.control_image_processor.preprocess(image, height=height, width=width)
            else:
                tensor = F.interpolate(image[None], size=(height, width))
            if tensor.shape[1] not in (1, channels):
                raise ValueError(f"A condition image has {tensor.shape[1]} channels; ControlNet takes {channels}.")
            tensors.append(tensor.expand(-1, channels, -1, -1))
        return torch.cat(tensors).repeat_interleave(batch_size // len(tensors), dim=0)


def load_component(model_class: type, path: str | os.PathLike, name: str, arguments: dict[str, Any]) -> torch.nn.Module:
    """One model of a pipeline's folder; data types that are given by component are looked up as the pipeline does."""
    arguments = dict(arguments)
    for key in ("dtype", "torch_dtype"):
        if isinstance(arguments.get(key), dict):
            arguments[key] = arguments[key].get(name, arguments[key].get("default", torch.float32))
    return model_class.from_pretrained(path, subfolder=name, **arguments)


@contextmanager
def lora_scaled(model: torch.nn.Module, scale: float | None) -> Iterator[None]:
    """Within this context the model's LoRA layers count `scale` times what they did."""
    if scale is None:
        yield
        return
    scale_lora_layers(model, scale)
    try:
        yield
    finally:
        unscale_lora_layers(model, scale)


@contextmanager
def text_projected_once(*models: torch.nn.Module) -> Iterator[Callable[[], None]]:
    """Within this context, cross-attention computes the text's keys and values once, as sampling shows the models the
    same text at every timestep. Yields what makes it forget them.
    """
    remembered: dict[torch.nn.Module, torch.Tensor] = {}

    def project(linear: torch.nn.Module, forward: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        if linear not in remembered:
            remembered[linear] = forward(*args)
        return remembered[linear]

    # A set, as one ControlNet may be there twice.
    layers = {layer for model in models if not is_compiled(model) for layer in model.modules()}
    attentions = [layer for layer in layers if isinstance(layer, Attention) and layer.is_cross_attention]
    projections = [linear for layer in attentions for linear in (layer.to_k, layer.to_v)]
    before = [vars(linear).get("forward") for linear in projections]  # an offloaded model's has been replaced already
    for linear in projections:
        linear.forward = partial(project, linear, linear.forward)
    try:
        yield remembered.clear
    finally:
        for linear, forward in zip(projections, before):
            del linear.forward
            if forward is not None:
                linear.forward = forward


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether any part of it was, in one of three ways; a layer's new `forward` would have it compiled once more."""
    return any(
        hasattr(part.forward, "_torchdynamo_orig_callable") or getattr(part, "_compiled_call_impl", None) is not None
        for part in model.modules()
    )


def scales_at(
    begin: float, end: float, scales: Sequence[float], starts: Sequence[float], ends: Sequence[float]
) -> list[float]:
    """Each ControlNet's scale in the step from `begin` to `end`, which is 0 unless it lies within start and end."""
    return [scale if start <= begin and end <= stop else 0.0 for scale, start, stop in zip(scales, starts, ends)]


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
    if not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
        raise ValueError(
            f"A condition image has values in {pixels.min():.3g}..{pixels.max():.3g}; it takes floats in 0..1 or bytes."
        )
    return list(pixels) if pixels.ndim == 4 else [pixels]


def kind(value: Any) -> str:
    dimensions = f" of {value.ndim} dimensions" if hasattr(value, "ndim") else ""
    return type(value).__name__ + dimensions


def check_is_ours(name: str, model: Any, expected: type) -> None:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, expected):
        raise ValueError(
            f"{name} is {type(model).__module__}.{type(model).__name__}; this pipeline runs {expected.__module__}."
            f"{expected.__name__}. Its from_pretrained loads the same files."
        )


def check_count(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer.")


def check_latents(latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents are {tuple(latents.shape)}; prompts and size ask for {shape}.")


def check_member(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}.")


def embed(controlnet: torch.nn.Module, condition: torch.Tensor, repeats: int) -> torch.Tensor:
    """A batch of so many times the condition, embedded; as images where only the model's own call may embed them.

    A model that is offloaded comes to the device when it is called, and another class may not know embedded conditions.
    """
    condition = torch.cat([condition] * repeats)
    if not isinstance(controlnet, ControlNetModel) or hasattr(controlnet, "_hf_hook"):
        return condition
    return controlnet.controlnet_cond_embedding(condition)


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
) -> tuple[list[str] | None, list[str] | None, int]:
    """The prompts and the negative prompts, each as a list of the same length or None, and that length."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("Give either prompt or prompt_embeds.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("Give negative_prompt or negative_prompt_embeds, not both.")
    embeds = [e for e in (prompt_embeds, negative_prompt_embeds) if e is not None]
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
    return prompts, negative_prompts, num_prompts


def as_strings(name: str, value: str | Sequence[str] | None) -> list[str] | None:
    if value is None:
        return None
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings or not all(isinstance(s, str) for s in strings):
        raise ValueError(f"{name} must be a string or a list of strings, not {value!r}.")
    return list(strings)
