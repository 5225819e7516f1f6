"""Writes a trained ControlNet as one file in the layout of its authors' code, for programs that read no other.

    python export_original.py --controlnet ../runs/demo/controlnet --output control_discs.safetensors

ComfyUI, Forge and sd-webui-controlnet read the folder's `diffusion_pytorch_model.safetensors` as it is (see
docs/reference/files.md); older programs look for the names of https://github.com/lllyasviel/ControlNet, under
`control_model.`.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors.torch import save_file

from diffusion.loading import read_controlnet
from finetune.argument_types import file_path
from finetune.model.cards import read_texts, write_texts
from finetune.run.checkpoints import give_rights
from finetune.setup import fail_clearly

PREFIX = "control_model."
# The parts of a residual block, there and here; those of the transformers have the same names.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# The original code numbers what a Sequential holds: a gap, as from 0 to 2, is an activation without weights.
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """How the modules of a UNet or ControlNet begin here, and how they do in the original code, which counts layers.

    `config` is the model's; a UNet's decoder is in it, so that a whole UNet can be renamed, too.
    """
    names = dict(OUTSIDE)
    # Number 0 is conv_in; then layers and halvings are counted through, whatever block they are in.
    levels, layers, count = len(config["block_out_channels"]), config["layers_per_block"], 1
    layers = [layers] * levels if isinstance(layers, int) else list(layers)
    for i in range(levels):
        for j in range(layers[i]):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{count}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{count}.1"
            count += 1
        if i < levels - 1:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    names.update({f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(count)})
    count = 0
    for i, kind in enumerate(config.get("up_block_types", ())):
        for j in range(layers[-1 - i] + 1):  # from the inside out, one more than in the encoder
            block, count = f"output_blocks.{count}", count + 1
            names[f"up_blocks.{i}.resnets.{j}"] = f"{block}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"{block}.1"
        # The doubling stands behind the block's last layer: third where that has attention, else second.
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"{block}.{2 if 'Attn' in kind else 1}.conv"
    widths = len(config.get("conditioning_embedding_out_channels", ()))
    blocks = 2 * (widths - 1)  # each width but the last has two convolutions; between all of them stands a SiLU
    names.update({f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(blocks)})
    names["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * blocks + 2}"
    return names


def to_original(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """A model's weights under the original code's names."""
    renamed = {}
    modules = module_names(config)
    for name, tensor in weights.items():
        module = next(own for own in modules if name.startswith(f"{own}."))
        rest = name[len(module) + 1 :]
        if re.search(r"\.resnets\.\d+$", module):
            part = next(own for own in RESNET if rest.startswith(f"{own}."))
            rest = RESNET[part] + rest[len(part) :]
        renamed[f"{prefix}{modules[module]}.{rest}"] = tensor
    return renamed


def export(folder: Path, file: Path) -> None:
    """Writes the ControlNet of a folder to a file, which is there when it is whole; with the texts that it had.

    Raises:
        BaseModelError: if there is no ControlNet; OSError: if there is no room.
    """
    controlnet = read_controlnet(folder)
    weights = to_original(controlnet.state_dict(), controlnet.config, PREFIX)
    sources = sorted(folder.glob("*.safetensors"))
    texts = {**(read_texts(sources[0]) if sources else {}), "format": "pt"}
    # Whose names the tensors have: managers of files go by it.
    if "modelspec.implementation" in texts:
        texts["modelspec.implementation"] = "https://github.com/lllyasviel/ControlNet"
    file.parent.mkdir(parents=True, exist_ok=True)
    # A program that watches the folder never sees half a file.
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(temporary))
        write_texts(temporary, texts)
        give_rights(temporary)
        os.replace(temporary, file)
    finally:
        if temporary.exists():
            temporary.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--controlnet", type=file_path, default=Path("../runs/demo/controlnet"), help="folder of a training"
    )
    parser.add_argument("--output", type=file_path, required=True, help="the .safetensors file to write")
    args = parser.parse_args()
    if args.output.suffix != ".safetensors":
        parser.error("--output must be a .safetensors file")
    export(args.controlnet, args.output)
    print(f"Written: {args.output}")


if __name__ == "__main__":
    with fail_clearly():
        main()
