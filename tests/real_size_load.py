"""Loads by diffusers what was trained: python tests/real_size_load.py BASE CONTROLNET LORA_FOLDER..."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import torch


def load_controlnet(folder: Path) -> None:
    controlnet = diffusers.ControlNetModel.from_pretrained(folder)
    learnt = sum(bool(layer.weight.any()) for layer in controlnet.controlnet_down_blocks)
    assert learnt == len(controlnet.controlnet_down_blocks), f"{learnt} zero convolutions have learnt something"
    print(f"ControlNet: {sum(parameter.numel() for parameter in controlnet.parameters())} parameters")


def load_lora(pipeline: diffusers.StableDiffusionPipeline, file: Path) -> set[str]:
    """The modules of the UNet that it adapts, in each of which it has learnt something."""
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    learnt = {name: bool(parameter.any()) for name, parameter in pipeline.unet.named_parameters() if ".lora_B." in name}
    pipeline.unload_lora_weights()
    assert learnt and all(learnt.values()), f"{file}: {sum(learnt.values())} of {len(learnt)} modules have learnt"
    return {name.split(".lora_B.")[0] for name in learnt}


def main() -> None:
    base, controlnet, *loras = map(Path, sys.argv[1:])
    load_controlnet(controlnet)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        base, vae=None, safety_checker=None, requires_safety_checker=False
    )
    for folder in loras:
        plain, kohya = (
            load_lora(pipeline, folder / f"pytorch_lora_weights{layout}.safetensors") for layout in ("", "_kohya")
        )
        assert plain == kohya, f"{folder}: Kohya's layout adapts {len(kohya)} modules, the other {len(plain)}"
        print(f"LoRA {folder.name}: {len(plain)} modules, in both layouts")


if __name__ == "__main__":
    with torch.no_grad():
        main()
