"""Loads a LoRA from a file into a pipeline: whole and at its own strength, or not at all.

The library's `load_lora_weights` draws on, with a warning at most, if a file's matrices belong to another base, if only
some of them arrive, or if their alphas differ. Here the file is looked at first.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Dict, Mapping, Tuple

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open

from lora.layouts import ALPHA, AS_WRITTEN, USE_OURS, WEIGHTS_FILE, LoraFileError, Shape, read_layout, shown

PARTS = ("unet", "text_encoder")
LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
# By module: A of shape (rank, in) and B of shape (out, rank), or those of two convolutions. The scale is in A, whose
# numbers are far from the smallest ones of half precision; those of B may not be.
Matrices = Dict[str, Tuple[torch.Tensor, torch.Tensor]]


def load_lora(pipeline: DiffusionPipeline, path: str | Path, adapter_name: str = "lora") -> None:
    """Adds the LoRA of a file, or of a folder with one, to UNet and text encoder, as the only one that is active.

    It is then the library's: `set_adapters`, `fuse_lora` and `unload_lora_weights` work as after `load_lora_weights`.

    Raises:
        LoraFileError: if there is no LoRA for this pipeline that can be loaded right; the pipeline is as it was.
        ValueError: if a LoRA of that adapter name is there already.
    """
    file = find_file(Path(path))
    try:
        add_lora(pipeline, file, adapter_name)
    except LoraFileError as error:
        raise LoraFileError(error.what, better_advice(error, file), file) from error


def find_file(path: Path) -> Path:
    """The LoRA's file, itself or in its folder. Raises LoraFileError if there is none, or if it is not clear which."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise LoraFileError("is not there", "name the folder or the file of a trained LoRA", path)
    found = sorted(path.glob("*.safetensors"))
    for one in (path / WEIGHTS_FILE, path / "lora" / "lora.safetensors"):  # the second is what a checkpoint keeps
        if one.is_file():
            found = [one]
            break
    others = [one.name for kind in ("bin", "pt", "pth", "ckpt") for one in sorted(path.glob(f"*.{kind}"))]
    if others and not found:
        raise LoraFileError(f"has no safetensors file, only {', '.join(others)}", USE_OURS, path)
    if not found:
        raise LoraFileError(f"has no LoRA: there is no {WEIGHTS_FILE}", "run the training to its end", path)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise LoraFileError(f"has several files ({names})", "name the file", path)
    return found[0]


def better_advice(error: LoraFileError, file: Path) -> str:
    """Names the file that the training wrote, where one lies near the wrong one."""
    # A training's folder holds the result, and checkpoints two folders below it, which are taken for it now and then.
    near = [folder / WEIGHTS_FILE for folder in list(file.resolve().parents)[:3]]
    right = next((one for one in near if one.is_file() and one != file.resolve()), None)
    return f"use {right}" if right and error.advice == USE_OURS else error.advice


def add_lora(pipeline: DiffusionPipeline, file: Path, adapter_name: str) -> None:
    """`load_lora` of a file, whose errors do not name it."""
    # PEFT would add to it in silence, and which LoRA a picture is of nobody could say.
    if any(adapted_layers(getattr(pipeline, part), adapter_name) for part in PARTS):
        raise ValueError(f"There is a LoRA {adapter_name!r} already: unload it, or give this one another adapter_name.")
    # transformers 5.6 dropped `text_model.` from its names: files are of before and after.
    modules = {f"{part}.{name.replace('text_model.', '', 1)}": (part, name, shape)
               for part in PARTS for name, shape in shapes_of(getattr(pipeline, part)).items()}  # fmt: skip
    by_part: dict[str, Matrices] = {}
    for module, pair in read_matrices(file, {module: shape for module, (_, _, shape) in modules.items()}).items():
        part, name, shape = modules[module]
        by_part.setdefault(part, {})[name] = tuple(
            fitted(matrix, len(shape), getattr(pipeline, part), module) for matrix in pair
        )
    for part, matrices in by_part.items():
        inject(getattr(pipeline, part), matrices, adapter_name)
    # Looked for and not believed: releases of the libraries leave out what they cannot place (docs/reference/files.md).
    if not all(has_arrived(getattr(pipeline, part), matrices, adapter_name) for part, matrices in by_part.items()):
        # The pipeline as it was: whoever catches the error may draw on.
        pipeline.delete_adapters(adapter_name)
        raise LoraFileError("did not arrive in the model as it is", "try other releases of peft and diffusers")
    pipeline.set_adapters(adapter_name)


def shapes_of(model: torch.nn.Module) -> dict[str, Shape]:
    """The weights' shapes of all modules that a LoRA can sit on, whether or not there is one already."""
    return {
        name.replace(".base_layer", ""): tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and ".lora_" not in name
    }


def read_matrices(file: Path, modules: Mapping[str, Shape]) -> Matrices:
    """The matrices of each of a base's modules that the file adapts. Raises LoraFileError."""
    try:
        with safe_open(str(file), "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}
    except (SafetensorError, OSError) as error:
        raise LoraFileError(f"cannot be read as safetensors ({error})", AS_WRITTEN) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    alphas = {name: tensor.item() for name, tensor in tensors.items() if name.endswith(ALPHA) and tensor.numel() == 1}
    # Names and shapes first, numbers later: a file of another base is refused before anything is put into the model.
    sites = read_layout(shapes, alphas, metadata, {"this base": modules}).sites
    for name in (name for site in sites.values() for name in (site.a, site.b)):
        if not tensors[name].is_floating_point():
            raise LoraFileError(f"has {shown(name)} in {tensors[name].dtype}, as whole numbers", AS_WRITTEN)
    # In float32, before the precision of the model: a small alpha times a small number is zero in half precision.
    return {name: (tensors[site.a].float() * site.scale, tensors[site.b].float()) for name, site in sites.items()}


def fitted(matrix: torch.Tensor, dimensions: int, model: torch.nn.Module, module: str) -> torch.Tensor:
    """A matrix in a model's precision, on its device and with as many dimensions as the module's weight."""
    # A LoRA on a convolution is two convolutions, (rank, in, 3, 3) and (out, rank, 1, 1); so are Kohya's on layers of
    # 1x1, which some models have as linear ones.
    matrix = matrix.reshape(*matrix.shape[:2], *(matrix.shape[2:] or (1, 1))[: dimensions - 2])
    matrix = matrix.to(model.device, model.dtype)
    # After the cast: 70,000 is a number in float32 and infinite in float16, of which the library draws black pictures.
    if not torch.isfinite(matrix).all():
        raise LoraFileError(f"has values at {module!r} that are not finite", "train again with a lower learning rate")
    return matrix


def inject(model: torch.nn.Module, matrices: Matrices, adapter_name: str) -> None:
    """Puts the matrices into a model; those of a lower rank than others get rows and columns of zeros."""
    rank = max(len(a) for a, _ in matrices.values())  # one for all: then alpha is the rank, and the strength 1
    # No random start: every number is about to be set.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(matrices), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs at once are meant
        inject_adapter_in_model(config, model, adapter_name)
    for name, pair in matrices.items():
        layer = model.get_submodule(name)
        # A zero row of A and column of B add nothing to the product.
        for matrix, place in zip(pair, (layer.lora_A, layer.lora_B)):
            whole = matrix.new_zeros(place[adapter_name].weight.shape)  # (R, in) or (out, R)
            whole[: matrix.shape[0], : matrix.shape[1]] = matrix
            place[adapter_name].weight.data = whole


def adapted_layers(model: torch.nn.Module, adapter_name: str) -> dict[str, torch.nn.Module]:
    return {name: layer for name, layer in model.named_modules() if adapter_name in getattr(layer, "lora_A", {})}


def has_arrived(model: torch.nn.Module, matrices: Matrices, adapter_name: str) -> bool:
    """Whether the model has the matrices, all of them and no others, at their full strength."""
    layers = adapted_layers(model, adapter_name)
    return layers.keys() == matrices.keys() and all(
        torch.equal(layers[name].lora_A[adapter_name].weight[: len(a)], a)
        and torch.equal(layers[name].lora_B[adapter_name].weight[:, : len(a)], b)
        and layers[name].scaling[adapter_name] == 1
        for name, (a, b) in matrices.items()
    )
