"""A trained ControlNet, and the pipeline with our UNet and it, ready to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import torch

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.devices import drawing_dtype, keep_freed_memory, pick_device
from finetune.model.base import BaseModelError, load_part
from finetune.model.sampler import sampling_scheduler
from finetune.setup import looks_local

# What ControlNet and UNet share: the latents, the text, and the features to which residuals are added.
SHARED = ("in_channels", "cross_attention_dim", "block_out_channels")


def read_controlnet(name: str | Path, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """A trained ControlNet. Raises BaseModelError if there is none."""
    try:
        return ControlNetModel.from_pretrained(name, dtype=dtype)
    except OSError as error:
        is_missing = looks_local(str(name)) and not Path(name).is_dir()  # of which the library says that it is offline
        why = f"there is no such folder in {Path.cwd()}." if is_missing else str(error).splitlines()[0]
        raise BaseModelError(
            f"Cannot load the ControlNet {str(name)!r}: {why}\n- A training writes it when it ends, into the folder "
            f"`controlnet` of its --output_dir; before, into `controlnet` of its checkpoints."
        ) from error


def load_controlnet(name: str | Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """A trained ControlNet for this UNet. Raises BaseModelError if there is none, or if it is for another base."""
    controlnet = read_controlnet(name, dtype)
    require_fit(name, controlnet.config, unet.config)
    return controlnet


def load_weights(controlnet: ControlNetModel, folder: Path) -> None:
    """Gives a ControlNet the weights of one that a checkpoint keeps. Raises BaseModelError if that has other layers."""
    saved = read_controlnet(folder)
    weights, own = saved.state_dict(), controlnet.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in own.items()}:
        require_fit(folder, saved.config, controlnet.config)
        widths = " ".join(map(str, saved.config.conditioning_embedding_out_channels))
        raise BaseModelError(
            f"The ControlNet {str(folder)!r} has other layers than the one to train; its condition's embedding has "
            f"--conditioning_channels {widths}."
        )
    controlnet.load_state_dict(weights)


def require_fit(name: str | Path, config: Mapping[str, Any], of_unet: Mapping[str, Any]) -> None:
    """Raises BaseModelError if a ControlNet is, by the configurations, for another base."""
    for field in (name for name in SHARED if name in config and name in of_unet):  # files may leave defaults out
        own, wanted = (size if isinstance(size, int) else list(size) for size in (config[field], of_unet[field]))
        if own != wanted:
            raise BaseModelError(
                f"The ControlNet {str(name)!r} is for another base: its {field} is {own}, the base's is {wanted}. Give "
                f"the base that it was trained on."
            )


def load_pipeline(
    base: str, controlnet: str | Path | ControlNetModel, device: torch.device | None = None
) -> StableDiffusionControlNetPipeline:
    """Our pipeline with our UNet: half precision on a GPU, float32 elsewhere.

    Raises:
        BaseModelError: if the base model or the ControlNet cannot be loaded.
    """
    device = device or pick_device()
    keep_freed_memory(device)
    # No small steps of a training can be lost here, and half precision takes half of the memory.
    dtype = drawing_dtype(device)
    unet = load_part(UNet2DConditionModel, base, "unet", dtype)
    if not isinstance(controlnet, ControlNetModel):
        controlnet = load_controlnet(controlnet, unet, dtype)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        base, unet=unet, controlnet=controlnet, dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler.config)
    return pipeline.to(device)
