"""What ControlNets add to every step of sampling: which of them are heard in it, and what they say."""

from __future__ import annotations

from functools import reduce
from typing import Sequence

import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import MultiControlNetModel

from .controlnet import ControlNetModel, ControlNetOutput
from .pipeline_inputs import check_control_interval, per_controlnet


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
        # Conditions are composed by adding what they say, nothing is learnt for it (Zhang et al., 2023, section 3.4).
        residuals = [
            net(sample, timestep, encoder_hidden_states, condition, scale, guess_mode=guess_mode, return_dict=False)
            for net, condition, scale in zip(self.nets, controlnet_cond, conditioning_scale)
            if scale != 0
        ]
        outputs = [[*down, mid] for down, mid in residuals]
        *down, mid = (reduce(torch.add, of_one_place) for of_one_place in zip(*outputs))
        return ControlNetOutput(tuple(down), mid) if return_dict else (tuple(down), mid)


def nets_of(controlnet: torch.nn.Module) -> Sequence[torch.nn.Module]:
    """The ControlNets that a pipeline's one holds: itself, or those of a `MultiControlNet`."""
    return getattr(controlnet, "nets", [controlnet])


class Steering:
    """The ControlNets in one call of the pipeline, with their conditions.

    Args:
        controlnet: one, or a `MultiControlNet`.
        conditions: for each ControlNet (images, channels, height, width) in 0..1, on its device.
        scale, start, end: the factor on the residuals, and the part of the steps, within 0..1, in which a ControlNet is
            heard; a number for all ControlNets, or one for each.
        guess_mode: only the conditional half of the guidance is steered, by the coarse features most.
        steer_unconditional: whether without it the unconditional half is steered, too.

    Raises:
        ValueError: for numbers that are missing, too many, none, or no part of 0..1.
    """

    def __init__(
        self,
        controlnet: torch.nn.Module,
        conditions: Sequence[torch.Tensor],
        scale: float | Sequence[float],
        start: float | Sequence[float],
        end: float | Sequence[float],
        guess_mode: bool,
        steer_unconditional: bool,
    ) -> None:
        self.controlnet, self.nets, self.guess_mode = controlnet, nets_of(controlnet), guess_mode
        self.conditional_half_only = guess_mode or not steer_unconditional
        self.conditions = conditions
        self.scales = per_controlnet("controlnet_conditioning_scale", scale, len(self.nets))
        self.starts = per_controlnet("control_guidance_start", start, len(self.nets))
        self.ends = per_controlnet("control_guidance_end", end, len(self.nets))
        check_control_interval(self.starts, self.ends)
        # By how often a batch has each condition: a callback may switch guidance off on the way, which halves it.
        self.embedded: dict[int, list[torch.Tensor]] = {}

    def residuals(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        step: tuple[float, float],
        guided: bool,
    ) -> tuple[tuple[torch.Tensor, ...] | None, torch.Tensor | None]:
        """What the UNet is to add to its skip connections and its mid block; (None, None) where nothing is heard.

        `step` is the part of the sampling, within 0..1, that this step takes. With guidance, `sample` and
        `prompt_embeds` hold the unconditional half of the batch and then the conditional, and so do the residuals.
        """
        begin, end = step
        heard = [start <= begin and end <= stop for start, stop in zip(self.starts, self.ends)]
        scales = [scale if is_heard else 0.0 for scale, is_heard in zip(self.scales, heard)]
        # None, not zeros: the UNet then runs as if there were no ControlNet, and a ControlNet's run is saved.
        if not any(scales):
            return None, None
        # Guidance draws out what the two halves of the batch differ by. Heard in one half only, ControlNet is a part of
        # that, counts `guidance_scale` times, and can steer without any prompt (Zhang et al., 2023, section 3.4).
        conditional_half_only = self.conditional_half_only and guided
        conditions = self.embed(repeats=2 if guided and not conditional_half_only else 1)
        if conditional_half_only:
            sample, prompt_embeds = sample.chunk(2)[1], prompt_embeds.chunk(2)[1]  # (B, 4, H, W), (B, T, D)
        one = not hasattr(self.controlnet, "nets")
        down_block_res_samples, mid_block_res_sample = self.controlnet(
            sample,
            timestep,
            prompt_embeds,
            conditions[0] if one else conditions,
            scales[0] if one else scales,
            guess_mode=self.guess_mode,
            return_dict=False,
        )
        if conditional_half_only:  # the other half is drawn as without ControlNet
            down_block_res_samples = tuple(torch.cat([torch.zeros_like(r), r]) for r in down_block_res_samples)
            mid_block_res_sample = torch.cat([torch.zeros_like(mid_block_res_sample), mid_block_res_sample])
        return down_block_res_samples, mid_block_res_sample

    def embed(self, repeats: int) -> list[torch.Tensor]:
        """For each ControlNet a batch of `repeats` times its condition, embedded where that can be done here.

        It does not depend on the timestep, so once is enough. A model that is offloaded, alone or with others, comes to
        the device when it is called as a whole, and another class may not know embedded conditions: these get images.
        """
        if repeats not in self.embedded:
            # (repeats * B, 3, 8 * H, 8 * W), embedded (repeats * B, C0, H, W).
            batches = [torch.cat([condition] * repeats) for condition in self.conditions]
            models, hooks = (self.controlnet, *self.nets), ("_hf_hook", "_diffusers_hook")
            if not any(hasattr(model, hook) for model in models for hook in hooks):
                batches = [
                    net.controlnet_cond_embedding(batch) if isinstance(net, ControlNetModel) else batch
                    for net, batch in zip(self.nets, batches)
                ]
            self.embedded[repeats] = batches
        return self.embedded[repeats]
