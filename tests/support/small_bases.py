"""A base in the layout of the embedded one, so small that a step of a training on it takes hundredths of a second.

Its weights are random: for what does not depend on what a base has learnt. Files, names, kinds of layers and the way of
the data are those of every other base.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from processes import BASE

_kept: list[tempfile.TemporaryDirectory] = []  # a folder ends with this process
WIDTH = 32  # of the text embeddings
LATENT_CHANNELS = 4


def save_small_base(folder: Path) -> str:
    """Writes it, and returns the folder: pictures of 64 px, one level in the UNet, one layer of everything."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(Path(BASE) / part, folder / part)
    shutil.copy(Path(BASE) / "model_index.json", folder)
    config = CLIPTextConfig.from_pretrained(BASE, subfolder="text_encoder")
    small = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.update({**small, "projection_dim": WIDTH})
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), norm_num_groups=4, latent_channels=LATENT_CHANNELS, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    UNet2DConditionModel(
        sample_size=8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, cross_attention_dim=WIDTH,
        block_out_channels=(32,), layers_per_block=1, attention_head_dim=2, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    ).save_pretrained(folder / "unet")  # fmt: skip
    return str(folder)


@lru_cache(maxsize=None)
def small_base() -> str:
    """Its folder: one for all the tests of this process."""
    _kept.append(tempfile.TemporaryDirectory(prefix="small-base-"))
    return save_small_base(Path(_kept[-1].name) / "base")


def small_lora() -> list[str]:
    """Flags of a LoRA's training on it."""
    base = ["--pretrained_model_name_or_path", small_base(), "--resolution", "64"]
    return [*base, "--train_batch_size", "2", "--rank", "2"]


def base_of_size(folder: Path, sample_size: Any) -> str:
    """The small base, whose UNet's configuration says this of the latents' size."""
    shutil.copytree(small_base(), folder)
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": sample_size}))
    return str(folder)
