"""What the pipeline is made of: our UNet and our ControlNets among diffusers' parts, put together, loaded and saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, List, Union

import diffusers
import torch

from finetune.model.dtypes import as_dtype, cast, dtype_argument
from finetune.run.checkpoints import give_rights

from .controlnet import ControlNetModel
from .pipeline_inputs import THEIRS, check_is_ours
from .steering import MultiControlNet
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


class PipelineParts(diffusers.StableDiffusionControlNetPipeline):
    """Diffusers' pipeline with our models in it; all but the drawing, which pipeline_controlnet.py does.

    Args:
        unet: our `UNet2DConditionModel`.
        controlnet: our `ControlNetModel`, or a list of them, whose residuals add up.
        safety_checker: is run on the images if there is one. Without it nothing filters them.

    The other arguments are those of `diffusers.StableDiffusionControlNetPipeline`.

    Raises:
        ValueError: if the UNet or a ControlNet is not ours, but for example diffusers' of the same name, or the UNet
            does not only denoise.
    """

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
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> PipelineParts:
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

    # What diffusers' pipeline asks of models that ours do not have: without these it would fail in its own words.
    load_ip_adapter = set_ip_adapter_scale = unload_ip_adapter = unsupported_method("IP-Adapter")
    enable_freeu = disable_freeu = unsupported_method("FreeU")
    check_inputs = unsupported_method("checking inputs without a call")
    fuse_qkv_projections = unfuse_qkv_projections = unsupported_method("fusing the projections of attention")
    prepare_ip_adapter_image_embeds = unsupported_method("IP-Adapter")
    from_single_file = classmethod(unsupported_method("loading from a single file"))
