"""Sampling with ControlNet: prompt and condition image in, image out.

Loading, saving, text encoding, LoRA and offloading are those of diffusers' pipeline. The sampling loop is here, and it
runs our UNet and our ControlNet. Same weights, same seed: the pixels equal diffusers' to the bit on CPU in float32.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence, Union

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.controlnet.pipeline_controlnet import MultiControlNetModel, retrieve_timesteps
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from PIL import Image

from finetune.checkpoints import give_rights
from finetune.dtypes import as_dtype, cast, dtype_argument

from .controlnet import ControlNetModel, ControlNetOutput
from .pipeline_inputs import (
    OUTPUT_TYPES,
    THEIRS,
    check_clip_skip,
    check_control_interval,
    check_count,
    check_generator,
    check_is_ours,
    check_kind,
    check_latents,
    check_member,
    check_number,
    check_prompts,
    check_supported,
    check_text_width,
    per_controlnet,
    split_conditions,
)
from .unets.unet_2d_condition import UNet2DConditionModel

# Arguments of `from_pretrained` that concern each model, not only the pipeline.
LOADING_ARGUMENTS = (
    "cache_dir",
    "device_map",
    "disable_mmap",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "proxies",
    "revision",
    "token",
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


def unsupported_method(what: str) -> Callable[..., None]:
    """In place of a method of diffusers' pipeline that this one does not have."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{what} is not supported here; {THEIRS} supports it and loads the same folder.")

    return refuse


class StableDiffusionControlNetPipeline(diffusers.StableDiffusionControlNetPipeline):
    """Draws what a prompt says, where condition images say.

    Args:
        unet: our `UNet2DConditionModel`.
        controlnet: our `ControlNetModel`, or a list of them, whose residuals add up.
        safety_checker: is run on the images if there is one. Without it nothing filters them.

    The other arguments are those of `diffusers.StableDiffusionControlNetPipeline`.

    Raises:
        ValueError: if the UNet or a ControlNet is not ours, but for example diffusers' of the same name, or the UNet
            does not only denoise.
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
        if unet.config.in_channels != unet.config.out_channels:
            raise ValueError(
                f"The UNet takes {unet.config.in_channels} channels and gives {unet.config.out_channels}: it is made "
                f"for inpainting or the like, which this pipeline does not do."
            )
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
        pass `controlnet=...` to put a ControlNet (or a list) on a plain Stable Diffusion model. `dtype` is a data type
        or the name of one, or a dict of these by component, with a "default"; `torch_dtype` is its older name. What is
        not asked for otherwise is loaded in float32, whatever the files hold.

        Raises:
            ValueError: if the model comes without a ControlNet and none is given, `dtype` is no data type or for a
                component that is not there, or models are to be quantised.
        """
        path, given = pretrained_model_name_or_path, set(kwargs)
        if kwargs.get("quantization_config") is not None:
            raise ValueError(f"quantization_config is not supported here; {THEIRS} supports it.")
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or torch.float32
        dtypes = dict(dtype) if isinstance(dtype, dict) else {"default": dtype}
        dtypes = {name: as_dtype(value) for name, value in dtypes.items()}
        default = dtypes.pop("default", torch.float32)
        arguments = {name: kwargs[name] for name in LOADING_ARGUMENTS if name in kwargs}
        if "controlnet" not in kwargs:
            in_index = cls.load_config(path, **arguments).get("controlnet", (None, None))[1]
            if in_index is None:
                raise ValueError(f"{path} holds no ControlNet: pass controlnet=ControlNetModel.from_pretrained(...).")
            arguments["dtype"] = dtypes.get("controlnet", default)
            nets = [ControlNetModel.from_pretrained(path, subfolder="controlnet", **arguments)]
            while os.path.isdir(os.path.join(path, f"controlnet_{len(nets)}")):
                nets.append(ControlNetModel.from_pretrained(path, subfolder=f"controlnet_{len(nets)}", **arguments))
            kwargs["controlnet"] = nets if in_index.startswith("Multi") else nets[0]
        if isinstance(kwargs["controlnet"], (list, tuple)):  # diffusers takes a list only if the index names none
            kwargs["controlnet"] = MultiControlNet(kwargs["controlnet"])
        if "unet" not in kwargs:
            arguments["dtype"] = dtypes.get("unet", default)
            kwargs["unet"] = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **arguments)
        pipeline = super().from_pretrained(path, **dtype_argument(cls, default), **kwargs)
        for name, dtype in dtypes.items():
            if name not in pipeline.components:
                raise ValueError(f"dtype names {name!r}; the components are {', '.join(pipeline.components)}.")
            if name not in given and isinstance(pipeline.components[name], torch.nn.Module):
                cast(pipeline.components[name], dtype)
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

    # What diffusers' pipeline asks of models that ours do not have: without these it would fail in its own words.
    load_ip_adapter = set_ip_adapter_scale = unload_ip_adapter = unsupported_method("IP-Adapter")
    enable_freeu = disable_freeu = unsupported_method("FreeU")
    check_inputs = unsupported_method("checking inputs without a call")
    fuse_qkv_projections = unfuse_qkv_projections = unsupported_method("fusing the projections of attention")
    prepare_ip_adapter_image_embeds = unsupported_method("IP-Adapter")
    from_single_file = classmethod(unsupported_method("loading from a single file"))

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        with text_model_found(self.text_encoder):
            return super().encode_prompt(*args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
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
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **unsupported: Any,
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
            timesteps, sigmas: of the steps, descending, instead of their number; not all schedulers take them.
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
            clip_skip: how many of the text encoder's last layers are left out for the prompt (not the negative one).
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step. It may return
                a dict with new `latents` and `prompt_embeds`. With guidance, `prompt_embeds` holds the negative
                embeddings in its first half; `negative_prompt_embeds` is only for later callbacks to read. Setting
                `pipeline._interrupt` ends the loop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of "latents", "prompt_embeds" and
                "negative_prompt_embeds".

        Raises:
            ValueError: if inputs are missing, of a wrong type, do not fit together, or are out of range.
        """
        check_supported(unsupported)
        several, nets = hasattr(self.controlnet, "nets"), getattr(self.controlnet, "nets", [self.controlnet])
        prompt, negative_prompt, num_prompts = check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        check_count("num_inference_steps", num_inference_steps)
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_number("guidance_scale", guidance_scale)
        check_number("eta", eta)
        check_generator(generator)
        if prompt is not None and clip_skip is not None:
            check_clip_skip(clip_skip, self.text_encoder)
        check_member("output_type", output_type, OUTPUT_TYPES)
        tensor_inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs or ())
        for name in tensor_inputs:
            check_member("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        scales = per_controlnet("controlnet_conditioning_scale", controlnet_conditioning_scale, len(nets))
        starts = per_controlnet("control_guidance_start", control_guidance_start, len(nets))
        ends = per_controlnet("control_guidance_end", control_guidance_end, len(nets))
        check_control_interval(starts, ends)

        # Callbacks read these through the library's properties, and may change them from one step to the next.
        self._guidance_scale, self._cross_attention_kwargs = guidance_scale, cross_attention_kwargs
        self._clip_skip, self._interrupt = clip_skip, False
        check_kind("cross_attention_kwargs", cross_attention_kwargs, dict)
        for embeds in (prompt_embeds, negative_prompt_embeds):
            check_text_width(embeds, self.unet.config.cross_attention_dim)
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
            clip_skip=clip_skip,
        )
        if self.do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])

        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        self._num_timesteps = len(timesteps)
        shape = (num_images, self.unet.config.in_channels)
        check_latents(latents, (*shape, height // self.vae_scale_factor, width // self.vae_scale_factor))
        latents = latents if latents is None else latents.to(prompt_embeds.dtype)
        latents = self.prepare_latents(*shape, height, width, prompt_embeds.dtype, device, generator, latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        # Where both are compiled, CUDA graphs may reuse the memory of residuals that the UNet has not read.
        mark_steps = is_compiled(self.unet) and is_compiled(self.controlnet)

        with lora_scaled(self.unet, lora_scale), text_projected_once(self.unet, *nets) as forget_text:
            for i, t in enumerate(self.progress_bar(timesteps)):
                if mark_steps:
                    torch.compiler.cudagraph_mark_step_begin()
                # fmt: off
                guided = self.do_classifier_free_guidance
                latent_model_input = torch.cat([latents] * 2) if guided else latents                # (2 * B, 4, H, W)
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)

                step_scales = scales_at(i / len(timesteps), (i + 1) / len(timesteps), scales, starts, ends)
                doubled = guided and not guess_mode
                if doubled not in embedded:  # once: it does not depend on the timestep
                    embedded[doubled] = self.embed_conditions(nets, conditions, 1 + doubled)
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
                    for name in changed:
                        check_member("callback_on_step_end returned", name, self._callback_tensor_inputs)
                    latents = changed.get("latents", latents)
                    prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = changed.get("negative_prompt_embeds", negative_prompt_embeds)
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

    def embed_conditions(
        self, nets: Sequence[torch.nn.Module], conditions: Sequence[torch.Tensor], repeats: int
    ) -> list[torch.Tensor]:
        """For each ControlNet a batch of so many times its condition, embedded where that may be done outside its call.

        A model that is offloaded, alone or with others, comes to the device when it is called as a whole, and another
        class may not know embedded conditions: these get images.
        """
        batches = [torch.cat([condition] * repeats) for condition in conditions]
        if any(hasattr(model, hook) for model in (self.controlnet, *nets) for hook in ("_hf_hook", "_diffusers_hook")):
            return batches
        return [
            net.controlnet_cond_embedding(batch) if isinstance(net, ControlNetModel) else batch
            for net, batch in zip(nets, batches)
        ]

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


@contextmanager
def text_model_found(text_encoder: torch.nn.Module | None) -> Iterator[None]:
    """Within this context diffusers finds the text encoder's last norm, which transformers 5 keeps one level higher."""
    if text_encoder is None or hasattr(text_encoder, "text_model"):
        yield
        return
    vars(text_encoder)["text_model"] = text_encoder  # not as a part of itself
    try:
        yield
    finally:
        del vars(text_encoder)["text_model"]


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
    remembered: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def project(linear: torch.nn.Module, forward: Callable[..., torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        # An attention processor of the user's may project other things too, such as a text for each region.
        if linear not in remembered or not same_memory(remembered[linear][0], text):
            remembered[linear] = text, forward(text)
        return remembered[linear][1]

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


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


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
