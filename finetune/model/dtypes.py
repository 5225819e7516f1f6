"""The data type that weights are loaded in, under the name that the installed libraries know the argument by."""

from __future__ import annotations

import torch
from accelerate.utils import compare_versions
from transformers import PreTrainedModel


def dtype_argument(part_class: type, dtype: torch.dtype | str) -> dict[str, torch.dtype]:
    """`dtype` as an argument of `from_pretrained`, which in older releases is called `torch_dtype`.

    `part_class` is a model or a pipeline of diffusers or transformers, or derived from one. Raises as `as_dtype` does.
    """
    # The course's release knows the old name only, today's warn of it, and a later one may refuse it.
    library, since = ("transformers", "4.56") if issubclass(part_class, PreTrainedModel) else ("diffusers", "0.40")
    return {"dtype" if compare_versions(library, ">=", since) else "torch_dtype": as_dtype(dtype)}


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """`model.to(dtype)` by PyTorch's method: that of diffusers 0.42 warns of modules to keep, though there are none."""
    return torch.nn.Module.to(model, dtype)


def as_dtype(value: torch.dtype | str) -> torch.dtype:
    """A data type of weights, itself or by its name: the libraries load in float32 what they are given as a name.

    Raises:
        ValueError: if it is none.
    """
    dtype = getattr(torch, value.split(".")[-1], None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {value!r}; give torch.float32, torch.float16 or torch.bfloat16, or such a name.")
    return dtype
