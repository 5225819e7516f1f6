"""A trained ControlNet in other programs: what they look for in diffusers' layout, and the authors' layout."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

import export_original
from diffusion.controlnet import ControlNetModel
from export_original import to_original
from finetune.model.cards import read_texts, write_texts
from finetune.model.single_file import configurations
from processes import BASE, call

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a ControlNet for Stable Diffusion 1.x as `train.py` makes it, without their numbers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configurations()["stable-diffusion-v1"]["unet"])
        controlnet = ControlNetModel.from_config(
            diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
        )
    return {name: tuple(tensor.shape) for name, tensor in controlnet.state_dict().items()}


def count(names: dict, pattern: str) -> int:
    """How many numbers stand where the pattern has its group."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def test_comfyui_forge_and_webui_find_what_they_look_for(shapes):
    # By this name they know the layout; the condition's convolutions are built with fixed widths, of three channels.
    assert shapes["controlnet_cond_embedding.conv_in.weight"] == (16, 3, 3, 3)
    widths = [shapes[f"controlnet_cond_embedding.blocks.{i}.weight"][:2] for i in range(6)]
    assert widths == [(16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96)]
    assert shapes["controlnet_cond_embedding.conv_out.weight"] == (320, 256, 3, 3)
    assert count(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\.") == 6
    # ComfyUI and Forge tell the base by these: the widths of UNet and text, and the transformers of each layer.
    assert shapes["conv_in.weight"] == (320, 4, 3, 3)
    depths, text_widths = [], set()
    for i in range(count(shapes, r"down_blocks\.(\d+)\.")):
        attentions = count(shapes, rf"down_blocks\.{i}\.attentions\.(\d+)\.")
        for j in range(attentions):
            block = f"down_blocks.{i}.attentions.{j}.transformer_blocks"
            depths.append(count(shapes, rf"{re.escape(block)}\.(\d+)\."))
            text_widths.add(shapes[f"{block}.0.attn2.to_k.weight"][1])
        depths += [0] * (count(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.") if not attentions else 0)
    assert depths == [1, 1, 1, 1, 1, 1, 0, 0] and text_widths == {768}
    assert not any(name.startswith(("class_embedding", "add_embedding")) for name in shapes)  # of SDXL
    # sd-webui-controlnet renames so many zero convolutions.
    assert count(shapes, r"controlnet_down_blocks\.(\d+)\.") == 12
    assert shapes["controlnet_down_blocks.11.weight"] == shapes["controlnet_mid_block.weight"] == (1280, 1280, 1, 1)


def test_the_original_layout_has_the_authors_names_and_shapes(shapes):
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = {
        **configurations()["stable-diffusion-v1"]["unet"],
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
    }
    original = {name: tuple(t.shape) for name, t in to_original(weights, config, "control_model.").items()}
    assert len(original) == len(shapes) == 340
    for name, shape in {
        "input_hint_block.0.weight": (16, 3, 3, 3), "input_hint_block.14.weight": (320, 256, 3, 3),
        "input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1), "time_embed.2.bias": (1280,),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_v.weight": (1280, 768),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3), "zero_convs.11.0.bias": (1280,),
        "middle_block.1.proj_in.weight": (1280, 1280, 1, 1), "middle_block.2.emb_layers.1.weight": (1280, 1280),
        "middle_block_out.0.weight": (1280, 1280, 1, 1),
    }.items():  # fmt: skip
        assert original[f"control_model.{name}"] == shape, name
    roots = {name.split(".")[1] for name in original}
    assert roots == {
        "input_hint_block", "input_blocks", "zero_convs", "middle_block", "middle_block_out", "time_embed"
    }  # fmt: skip


def test_levels_with_their_own_numbers_of_layers_are_counted_through():
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=(1, 2), norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    original = to_original(unet.state_dict(), unet.config, "")
    assert len(original) == len(unet.state_dict())
    assert count(original, r"input_blocks\.(\d+)\.") == 5 and count(original, r"output_blocks\.(\d+)\.") == 5
    for name, own in {
        "input_blocks.2.0.op.weight": unet.down_blocks[0].downsamplers[0].conv,
        "input_blocks.4.0.in_layers.2.weight": unet.down_blocks[1].resnets[1].conv1,
        "output_blocks.2.1.conv.weight": unet.up_blocks[0].upsamplers[0].conv,
        "output_blocks.4.0.in_layers.2.weight": unet.up_blocks[1].resnets[1].conv1,
    }.items():
        assert torch.equal(original[name], own.weight), name


def test_diffusers_reads_the_export_back_to_the_bit(tmp_path):
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(unet, [8, 12, 16, 20])
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter)
    controlnet.save_pretrained(tmp_path / "controlnet")
    write_texts(
        tmp_path / "controlnet" / FILE, {"format": "pt", "ss_steps": "7", "modelspec.implementation": "diffusers"}
    )
    file = tmp_path / "new" / "control.safetensors"
    status, said = call(export_original.main, "--controlnet", str(tmp_path / "controlnet"), "--output", str(file))
    assert status == 0 and f"Written: {file}" in said, said
    assert all(name.startswith("control_model.") for name in load_file(file))
    assert read_texts(file)["ss_steps"] == "7" and "lllyasviel" in read_texts(file)["modelspec.implementation"]
    read = diffusers.ControlNetModel.from_single_file(
        str(file), config=str(tmp_path / "controlnet"), local_files_only=True
    )
    own = controlnet.state_dict()
    assert read.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in read.state_dict().items())


def test_what_cannot_be_exported_says_so(tmp_path):
    status, said = call(
        export_original.main, "--controlnet", str(tmp_path), "--output", str(tmp_path / "a.safetensors")
    )
    assert status == 1 and "Error: " in said and "Traceback" not in said and not list(Path(tmp_path).iterdir())
    status, said = call(export_original.main, "--output", str(tmp_path / "a.ckpt"))
    assert status == 2 and "--output must be a .safetensors file" in said
