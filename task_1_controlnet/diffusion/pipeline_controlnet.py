"""Sampling with ControlNet: prompt and condition image in, image out.

Loading, saving, text encoding, LoRA and offloading are those of diffusers' pipeline. The sampling loop is here, and it
runs our UNet and our ControlNet. Same weights, same seed: the pixels equal diffusers' to the bit on CPU in float32.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Sequence, Union

import diffusers
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import retrieve_timesteps
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from finetune.model.dtypes import as_dtype, cast, dtype_argument
from finetune.run.checkpoints import give_rights

from .controlnet import ControlNetModel
from .pipeline_inputs import (
    THEIRS,
    StepCallback,
    check_clip_skip,
    check_is_ours,
    check_latents,
    check_prompts,
    check_settings,
    check_supported,
    check_text_width,
    condition_batch,
    image_size,
    split_conditions,
)
from .sampling_contexts import is_compiled, lora_scaled, text_model_found, text_projected_once
from .steering import MultiControlNet, Steering, nets_of
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
            # The library saves several ControlNets as controlnet, controlnet_1, controlnet_2 and so on.
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
        # Under diffusers' names: who gets the folder need not have this code.
        self.register_to_config(unet=("diffusers", "UNet2DConditionModel"), controlnet=controlnet)
        super().save_pretrained(save_directory, *args, **kwargs)
        give_rights(*Path(save_directory).glob("*/*.safetensors"))

    @property
    def do_classifier_free_guidance(self) -> bool:
        # At 1 guidance is the prediction with the prompt alone, and half of the batch says the same.
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
        num_inference_steps: int = 50,  # the library's; with UniPC, which our programs set, 20 do
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,  # the library's; the embedded base, whose colours become too strong, wants 3
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
        check_settings(
            num_inference_steps, num_images_per_prompt, guidance_scale, eta, generator, output_type,
            cross_attention_kwargs,
        )  # fmt: skip
        prompt, negative_prompt, num_prompts = check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        for embeds in (prompt_embeds, negative_prompt_embeds):
            check_text_width(embeds, self.unet.config.cross_attention_dim)
        if prompt is not None and clip_skip is not None:
            check_clip_skip(clip_skip, self.text_encoder)
        callback = StepCallback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)

        # Callbacks read these through the library's properties, and may change them from one step to the next.
        self._guidance_scale, self._cross_attention_kwargs = guidance_scale, cross_attention_kwargs
        self._clip_skip, self._interrupt = clip_skip, False
        attention_kwargs = dict(cross_attention_kwargs or {})
        lora_scale = attention_kwargs.pop("scale", None)
        device, num_images = self._execution_device, num_prompts * num_images_per_prompt

        conditions, height, width = self.prepare_conditions(image, height, width, num_prompts, num_images)
        steering = Steering(
            self.controlnet, conditions, controlnet_conditioning_scale, control_guidance_start, control_guidance_end,
            guess_mode,
        )  # fmt: skip
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, device, num_images_per_prompt, self.do_classifier_free_guidance, negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, lora_scale=lora_scale,
            clip_skip=clip_skip,
        )  # fmt: skip
        if self.do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])  # (2 * B, T, D)
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        latents = self.start_latents(latents, num_images, height, width, prompt_embeds.dtype, generator)
        # eta is DDIM's share of fresh noise in each step (Song et al., 2021, https://arxiv.org/abs/2010.02502, eq. 16).
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        with lora_scaled(self.unet, lora_scale):
            latents = self.denoise(
                latents, timesteps, prompt_embeds, negative_prompt_embeds, steering, callback, attention_kwargs,
                extra_step_kwargs,
            )  # fmt: skip
        images, has_nsfw_concept = self.decode(latents, output_type, prompt_embeds.dtype, generator)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, has_nsfw_concept
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=has_nsfw_concept)

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        steering: Steering,
        callback: StepCallback,
        attention_kwargs: dict[str, Any],
        extra_step_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """The sampling loop, from noise to latents (images, channels, height / 8, width / 8).

        With guidance, `prompt_embeds` holds the negative embeddings and then the prompts'.
        """
        self._num_timesteps = len(timesteps)
        # Where both are compiled, CUDA graphs may reuse the memory of residuals that the UNet has not read.
        mark_steps = is_compiled(self.unet) and is_compiled(self.controlnet)
        with text_projected_once(self.unet, *steering.nets) as forget_text:
            for i, t in enumerate(self.progress_bar(timesteps)):
                if mark_steps:
                    torch.compiler.cudagraph_mark_step_begin()
                # fmt: off
                guided = self.do_classifier_free_guidance
                latent_model_input = torch.cat([latents] * 2) if guided else latents            # (2 * B, 4, H, W)
                # Euler's and some others keep latents as large as their noise; the UNet has learnt on a variance of 1.
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)

                step = (i / len(timesteps), (i + 1) / len(timesteps))
                down, mid = steering.residuals(latent_model_input, t, prompt_embeds, step, guided)
                noise_pred = self.unet(                                                         # (2 * B, 4, H, W)
                    latent_model_input, t, prompt_embeds, attention_kwargs, down, mid, return_dict=False
                )[0]
                if guided:  # Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598, eq. 6, with w = guidance_scale - 1
                    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)                    # (B, 4, H, W) each
                    noise_pred = noise_pred_uncond + self.guidance_scale * (noise_pred_text - noise_pred_uncond)
                latents = self.scheduler.step(                                                  # (B, 4, H, W)
                    noise_pred, t, latents, **extra_step_kwargs, return_dict=False
                )[0]
                # fmt: on
                if callback:
                    latents, prompt_embeds, negative_prompt_embeds = callback(
                        i, t, latents, prompt_embeds, negative_prompt_embeds
                    )
                    forget_text()  # a callback may change anything, a LoRA too
                if self._interrupt:
                    break
        return latents

    def decode(
        self, latents: torch.Tensor, output_type: str, dtype: torch.dtype, generator: Any
    ) -> tuple[Any, list[bool] | None]:
        """The images in the form that was asked for, and which of them the safety checker blacked out."""
        images, has_nsfw_concept = latents, None
        if output_type != "latent":
            latents = latents / self.vae.config.scaling_factor  # back to the autoencoder's own scale
            images = self.vae.decode(latents, return_dict=False, generator=generator)[0]  # (B, 3, 8 * H, 8 * W)
            images, has_nsfw_concept = self.run_safety_checker(images, self._execution_device, dtype)
        # What the checker blacks out it leaves at 0, which is black only if it is not taken for the middle of -1..1.
        do_denormalize = [not flagged for flagged in has_nsfw_concept or [False] * len(latents)]
        images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=do_denormalize)
        return images, has_nsfw_concept

    def start_latents(
        self,
        latents: torch.Tensor | None,
        num_images: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """The noise to start from, as strong as the scheduler wants it: the given one's, or random."""
        shape = (num_images, self.unet.config.in_channels)
        check_latents(latents, (*shape, height // self.vae_scale_factor, width // self.vae_scale_factor))
        latents = latents if latents is None else latents.to(dtype)
        # Noise of the scheduler's strength: 1 for most, about the largest sigma for those that keep larger latents.
        return self.prepare_latents(*shape, height, width, dtype, self._execution_device, generator, latents)

    def prepare_conditions(
        self, image: Any, height: int | None, width: int | None, num_prompts: int, num_images: int
    ) -> tuple[list[torch.Tensor], int, int]:
        """For each ControlNet its condition (num_images, channels, height, width) in 0..1, and that height and width.

        Raises:
            ValueError: for what is no image, too many or too few, of a wrong size or with wrong channels.
        """
        nets = nets_of(self.controlnet)
        several = len(nets) if hasattr(self.controlnet, "nets") else None
        images = split_conditions(image, several, num_prompts)
        height, width = image_size(images[0][0], height, width, self.vae_scale_factor)
        to_tensor = partial(self.control_image_processor.preprocess, height=height, width=width)
        conditions = [
            condition_batch(some, to_tensor, (height, width), net.config.conditioning_channels, num_images)
            for net, some in zip(nets, images)
        ]
        device = self._execution_device
        return [condition.to(device, net.dtype) for condition, net in zip(conditions, nets)], height, width
