"""What the UNet and ControlNet have in common: how they are loaded and saved, and the parts both are built of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Sequence

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from finetune.devices import has_float64
from finetune.model.dtypes import dtype_argument
from finetune.run.checkpoints import give_rights

from .configuration import INERT_FIELDS, block_classes, check_fields, check_inert_fields, is_size
from .unets.unet_2d_blocks import BlockParams, CrossAttnDownBlock2D, DownBlock2D

DOWN_BLOCKS = {"DownBlock2D": DownBlock2D, "CrossAttnDownBlock2D": CrossAttnDownBlock2D}


class StableDiffusionModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A model with diffusers' loading, saving and adapters, which refuses configurations that it cannot honour."""

    # What the library asks a model before it saves memory: may activations be computed again, which parts must stay on
    # one device (as they add their input to their output), which are not stored in 8 bits, and which repeat.
    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock"]

    def __init__(self) -> None:
        super().__init__()
        # Before a layer is built: PyTorch's errors would speak of shapes, and not of the file's field.
        check_fields(self.config)

    if not hasattr(ModelMixin, "_set_gradient_checkpointing"):  # diffusers before 0.33 asks each model for this

        def _set_gradient_checkpointing(self, module: nn.Module, value: bool = False) -> None:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = value

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Splits a configuration for `from_config`; diffusers would ignore the fields that `__init__` does not take."""
        known = cls._get_init_keys(cls)
        inert = {name: value for name, value in config_dict.items() if name not in known and not name.startswith("_")}
        config_dict = {name: value for name, value in config_dict.items() if name not in inert}
        # Fields that the caller overrides, such as `from_pretrained(..., dropout=0.1)`, are asked for, too.
        inert.update({name: kwargs.pop(name) for name in INERT_FIELDS if name in kwargs})
        check_inert_fields(inert)
        init_dict, unused_kwargs, other_fields = super().extract_init_dict(config_dict, **kwargs)
        other_fields.update(inert)  # kept, so that a model is saved with the configuration it was loaded with
        return init_dict, unused_kwargs, other_fields

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, dtype: Any = None, torch_dtype: Any = None, **kwargs: Any
    ) -> StableDiffusionModel:
        """Loads from a folder or the hub, in float32 where no `dtype` (or `torch_dtype`, its older name) is asked for.

        The arguments are those of diffusers' models. Raises ValueError for a configuration that this model does not
        support, and for a `dtype` that is neither a data type of weights nor the name of one.
        """
        # In float32 whatever the file holds: the embedded base's are float16 to be half as large, not to be trained in.
        argument = dtype_argument(cls, dtype or torch_dtype or torch.float32)
        return super().from_pretrained(pretrained_model_name_or_path, **argument, **kwargs)

    @classmethod
    def from_single_file(cls, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"This {cls.__name__} does not read single files: load the file with diffusers' class of that name, "
            f"save_pretrained it, and load the folder."
        )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers' models, but readable for whom the umask says."""
        super().save_pretrained(save_directory, *args, **kwargs)
        # Else nobody who shares the computer could load it: safetensors 0.8 writes for the file's owner alone.
        give_rights(*Path(save_directory).glob("*.safetensors"))

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Every attention layer's processor, by the layer's name followed by `.processor`."""
        layers = self.named_modules()
        return {f"{name}.processor": layer.get_processor() for name, layer in layers if isinstance(layer, Attention)}

    def set_attn_processor(self, processor: Any) -> None:
        """Sets one processor for all attention layers, or one each from a dict like `attn_processors`.

        Raises:
            ValueError: if a dict does not name exactly the model's attention layers.
        """
        names = list(self.attn_processors)
        processors = processor if isinstance(processor, dict) else {name: processor for name in names}
        if set(processors) != set(names):
            raise ValueError(f"Expected a processor for each of {len(names)} attention layers, got {len(processors)}.")
        for name in names:
            self.get_submodule(name[: -len(".processor")]).set_processor(processors[name])

    def set_default_attn_processor(self) -> None:
        """Attention in single steps, by plain matrix products, as diffusers' models understand "default"."""
        self.set_attn_processor(AttnProcessor())

    def set_attention_slice(self, slice_size: str | int | Sequence[int | None] | None) -> None:
        """Computes attention for some heads at a time: slower, in less memory. Pipelines call it for the user.

        Args:
            slice_size: "auto" for half of each layer's heads, "max" for one head, a number of heads, or one such for
                each attention layer; None for all heads at once, by PyTorch's fused attention.

        Raises:
            ValueError: if it is none of these, or a layer has fewer heads than asked for.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, Attention)]
        if slice_size == "auto":
            slice_size = [max(1, layer.sliceable_head_dim // 2) for layer in layers]
        sizes = slice_size if isinstance(slice_size, (list, tuple)) else [slice_size] * len(layers)
        sizes = [1 if size == "max" else size for size in sizes]
        if len(sizes) != len(layers):
            raise ValueError(f"slice_size has {len(sizes)} entries for {len(layers)} attention layers.")
        for layer, size in zip(layers, sizes):
            if size is not None and not is_size(size):
                raise ValueError(f"slice_size is {size!r}; give 'auto', 'max', or a positive number of heads.")
            layer.set_attention_slice(size)

    def embed_timestep(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """The time embedding of shape (batch, 4 * block_out_channels[0]) for one timestep, or one per sample."""
        # Some schedulers have timesteps between two whole numbers, which an integer would cut.
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float64 if isinstance(timestep, float) else torch.int64)
        if timestep.dtype == torch.float64 and not has_float64(sample.device):
            timestep = timestep.float()
        timesteps = timestep.to(sample.device).reshape(-1).expand(sample.shape[0])  # (B,)
        # The sines are taken in float32, then rounded: as a bfloat16, of which one in four is there, 999 would be 1000.
        return self.time_embedding(self.time_proj(timesteps).to(sample.dtype))  # (B, C0), then (B, 4 * C0)


def build_time_embedding(width: int, flip_sin_to_cos: bool, freq_shift: int) -> tuple[Timesteps, TimestepEmbedding]:
    # A number becomes waves of many lengths, as positions do in a Transformer (Vaswani et al., 2017, section 3.5; Ho et
    # al., 2020, appendix B), so that near timesteps look alike and no two the same; then two linear layers. Stable
    # Diffusion's weights want cosines before sines, Ho et al.'s code has them the other way round.
    return Timesteps(width, flip_sin_to_cos, freq_shift), TimestepEmbedding(width, 4 * width, act_fn="silu")


def build_down_blocks(
    down_block_types: Sequence[str],
    block_out_channels: Sequence[int],
    num_heads: Sequence[int],
    layers_per_block: Sequence[int],
    params: BlockParams,
) -> nn.ModuleList:
    """The encoder's blocks; all but the last halve the size."""
    blocks = nn.ModuleList()
    in_channels, num_blocks = block_out_channels[0], len(block_out_channels)
    # Stable Diffusion, for 512 px: features of 64, 32, 16 and 8 places a side, wider as they get smaller. The last
    # block does not halve: below it is the mid block, at the same size.
    for i, block in enumerate(block_classes(DOWN_BLOCKS, down_block_types, num_blocks, "down_block_types")):
        out_channels, add_downsample = block_out_channels[i], i < num_blocks - 1
        blocks.append(block(in_channels, out_channels, layers_per_block[i], num_heads[i], add_downsample, params))
        in_channels = out_channels
    return blocks


def skip_widths(block_out_channels: Sequence[int], num_layers: Sequence[int]) -> list[int]:
    """The channels of each skip connection, in the order in which the encoder makes them."""
    # The output of conv_in, each layer's, and each halving's, which the last block does not have: 1 + 4 * 2 + 3 = 12 in
    # Stable Diffusion 1, ControlNet's 12 encoding blocks.
    widths = [block_out_channels[0]]
    for i, channels in enumerate(block_out_channels):
        widths += [channels] * (num_layers[i] + (i < len(block_out_channels) - 1))
    return widths
