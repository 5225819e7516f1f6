"""What holds while a pipeline samples: LoRA's share, what is computed once, where the library looks for a part."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator

import torch
from diffusers.models.attention_processor import Attention
from diffusers.utils import scale_lora_layers


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
def lora_scaled(model: torch.nn.Module | None, scale: float | None) -> Iterator[None]:
    """Within this context the model's LoRA layers count `scale` times what they did."""
    if scale is None or model is None:
        yield
        return
    # Kept, not divided out again, as diffusers 0.42 does: after a scale of 0 that leaves every adapter at 1.
    scalings = [layer.scaling for layer in model.modules() if isinstance(getattr(layer, "scaling", None), dict)]
    before = [dict(scaling) for scaling in scalings]  # of each of PEFT's layers, by adapter
    scale_lora_layers(model, scale)
    try:
        yield
    finally:
        for scaling, kept in zip(scalings, before):
            scaling.update(kept)


@contextmanager
def text_projected_once(*models: torch.nn.Module) -> Iterator[Callable[[], None]]:
    """Within this context, cross-attention computes the text's keys and values once, as sampling shows the models the
    same text at every timestep. Yields what makes it forget them.
    """
    # By layer the text, (2 * B, T, D), and its keys or values, (2 * B, T, C). Of 20 steps 19 need not compute them;
    # kept as long as a call of the pipeline, since a LoRA may change the layers between two calls.
    remembered: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def project(linear: torch.nn.Module, forward: Callable[..., torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        # An attention processor of the user's may project other things too, such as a text for each region.
        if linear not in remembered or not same_memory(remembered[linear][0], text):
            remembered[linear] = text, forward(text)
        return remembered[linear][1]

    # Compiled models are left alone: another `forward` in them would have them compiled again at each call.
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
    # Not `is`: a half of the batch is a new object at every step, at the same place. What is remembered is alive, so
    # that no other tensor can have come to its place.
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether any part of it was, in one of three ways; a layer's new `forward` would have it compiled once more."""
    return any(
        hasattr(part.forward, "_torchdynamo_orig_callable") or getattr(part, "_compiled_call_impl", None) is not None
        for part in model.modules()
    )
