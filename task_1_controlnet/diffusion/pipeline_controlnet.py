"""Sampling with ControlNet: prompt and condition image in, image out.

How the pipeline is put together, loaded and saved stands in pipeline_parts.py; text encoding, LoRA and offloading are
those of diffusers' pipeline. Same weights, same seed: the pixels equal diffusers' to the bit on CPU in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Sequence

import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import retrieve_timesteps
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from .pipeline_inputs import (
    StepCallback,
    check_clip_skip,
    check_kind,
    check_latents,
    check_prompts,
    check_settings,
    check_supported,
    condition_batch,
    image_size,
    split_conditions,
)
from .pipeline_parts import PipelineParts
from .sampling_contexts import is_compiled, lora_scaled, text_model_found, text_projected_once
from .steering import Steering, nets_of


class StableDiffusionControlNetPipeline(PipelineParts):
    """Draws what a prompt says, where condition images say.

    Args of a call:
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
        steer_unconditional: False steers the conditional half only, all features alike (diffusers has no such
            argument): what follows the condition is drawn out as what follows the prompt is, in less time.
        control_guidance_start, control_guidance_end: the part of the steps, within 0..1, in which ControlNet is
            heard, for all ControlNets or for each.
        clip_skip: how many of the text encoder's last layers are left out for the prompt (not the negative one).
        callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step. It may return
            a dict with new `latents` and `prompt_embeds`. With guidance, `prompt_embeds` holds the negative
            embeddings in its first half; `negative_prompt_embeds` is only for later callbacks to read. Setting
            `pipeline._interrupt` ends the loop.
        callback_on_step_end_tensor_inputs: which tensors it gets, of "latents", "prompt_embeds" and
            "negative_prompt_embeds".
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    @property
    def do_classifier_free_guidance(self) -> bool:
        # At 1 guidance is the prediction with the prompt alone, and half of the batch says the same.
        return self._guidance_scale > 1

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        with text_model_found(self.text_encoder):
            return super().encode_prompt(*args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        height: int | None = None, width: int | None = None,
        num_inference_steps: int = 50,  # the library's; with UniPC, which our programs set, 20 do
        *,
        timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,  # the library's; the embedded base, whose colours become too strong, wants 3
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None, negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil", return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        guess_mode: bool = False, steer_unconditional: bool = True,
        control_guidance_start: float | Sequence[float] = 0.0, control_guidance_end: float | Sequence[float] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **unsupported: Any,
    ) -> StableDiffusionPipelineOutput | tuple:  # fmt: skip
        """Generates `num_images_per_prompt` images for each prompt; the arguments stand above, in the class's words.

        Raises:
            ValueError: if inputs are missing, of a wrong type, do not fit together, or are out of range.
        """
        check_supported(unsupported)
        check_settings(num_inference_steps, num_images_per_prompt, guidance_scale, eta, generator, output_type)
        check_kind("cross_attention_kwargs", cross_attention_kwargs, dict)
        prompt, negative_prompt, num_prompts = check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, self.unet.config.cross_attention_dim
        )
        check_clip_skip(clip_skip, prompt, self.text_encoder)
        callback = StepCallback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.set_for_callbacks(guidance_scale, cross_attention_kwargs, clip_skip)

        device, num_images = self._execution_device, num_prompts * num_images_per_prompt
        conditions, height, width = self.prepare_conditions(image, height, width, num_prompts, num_images)
        strength = (controlnet_conditioning_scale, control_guidance_start, control_guidance_end)
        steering = Steering(self.controlnet, conditions, *strength, guess_mode, steer_unconditional)
        prompt_embeds, negative_prompt_embeds = self.embed_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        latents = self.start_latents(latents, num_images, height, width, prompt_embeds.dtype, generator)

        latents = self.denoise(
            latents, timesteps, prompt_embeds, negative_prompt_embeds, steering, callback, generator, eta
        )
        images, has_nsfw_concept = self.decode(latents, output_type, prompt_embeds.dtype, generator)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, has_nsfw_concept) if return_dict else (images, has_nsfw_concept)

    def set_for_callbacks(
        self, guidance_scale: float, cross_attention_kwargs: dict[str, Any] | None, clip_skip: int | None
    ) -> None:
        """What callbacks read through the library's properties, and may change from one step to the next."""
        self._guidance_scale, self._cross_attention_kwargs = guidance_scale, cross_attention_kwargs
        self._clip_skip, self._interrupt = clip_skip, False

    def embed_prompts(
        self,
        prompt: list[str] | None,
        negative_prompt: list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        num_images_per_prompt: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The text embeddings, (B, T, D), or with guidance the negative ones and then they; and the negative ones."""
        guided, lora_scale = self.do_classifier_free_guidance, (self.cross_attention_kwargs or {}).get("scale")
        with lora_scaled(self.text_encoder, lora_scale):
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt, self._execution_device, num_images_per_prompt, guided, negative_prompt,
                prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, clip_skip=self.clip_skip,
            )  # fmt: skip
        if guided:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])  # (2 * B, T, D)
        return prompt_embeds, negative_prompt_embeds

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        steering: Steering,
        callback: StepCallback,
        generator: torch.Generator | list[torch.Generator] | None,
        eta: float,
    ) -> torch.Tensor:
        """The sampling loop, from noise to latents (images, channels, height / 8, width / 8).

        With guidance, `prompt_embeds` holds the negative embeddings and then the prompts'.
        """
        self._num_timesteps = len(timesteps)
        # eta is DDIM's share of fresh noise in each step (Song et al., 2021, https://arxiv.org/abs/2010.02502, eq. 16).
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        # Where both are compiled, CUDA graphs may reuse the memory of residuals that the UNet has not read.
        mark_steps = is_compiled(self.unet) and is_compiled(self.controlnet)
        attention_kwargs = dict(self.cross_attention_kwargs or {})
        lora_scale = attention_kwargs.pop("scale", None)
        with lora_scaled(self.unet, lora_scale), text_projected_once(self.unet, *steering.nets) as forget_text:
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
