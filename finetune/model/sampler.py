"""The scheduler that pictures are drawn with."""

from __future__ import annotations

from typing import Any

from diffusers import UniPCMultistepScheduler


def sampling_scheduler(config: Any) -> UniPCMultistepScheduler:
    """A sampler that needs about 20 steps (Zhao et al., 2023, https://arxiv.org/abs/2302.04867), from another's config.

    It starts at the last timestep: at an earlier one, the noise that sampling starts from would pass for the beginnings
    of a picture, which then stands against the condition (Lin et al., 2023, https://arxiv.org/abs/2305.08891, 3.3).
    """
    return UniPCMultistepScheduler.from_config(config, timestep_spacing="trailing")
