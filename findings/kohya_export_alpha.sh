#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: convert_state_dict_to_kohya writes the rank as every module's alpha, whatever lora_alpha was: an adapter
#   trained with alpha 16 and rank 4 comes out a quarter as strong (its state dict has no alpha, and the function takes
#   none). Of a DoRA the magnitude keeps its own name with dots in it, no dora_scale is written, since the renaming
#   stands behind an elif that a UNet's keys never reach.
# Output seen: alpha written 4 of 16; magnitude keys: lora_unet_..._attn1.to_q.lora_magnitude_vector; dora_scale keys:
#   0
# One would have guessed: The function that diffusers' advanced DreamBooth scripts call to export for other programs
#   keeps what the LoRA does.
# What follows: Multiply the alpha of an exported file by lora_alpha / rank before it is handed on, and export no DoRA
#   this way.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


def export(**options):
    unet = small_unet()
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False, **options))
    return convert_state_dict_to_kohya({f"unet.{k}": v for k, v in get_peft_model_state_dict(unet).items()})


plain = export(lora_alpha=16)
alphas = {v.item() for k, v in plain.items() if k.endswith(".alpha")}
assert plain and all(k.startswith("lora_unet_") for k in plain)
dora = export(lora_alpha=4, use_dora=True)
magnitudes = [k for k in dora if "magnitude" in k]
scales = [k for k in dora if "dora_scale" in k]
print("alpha written", alphas, "of 16;", magnitudes[0], "; dora_scale keys:", len(scales))
assert alphas == {4}, "the alpha is kept now"
assert magnitudes and not scales and all("attn" in k.split(".")[0] and k.count(".") == 2 for k in magnitudes)
PY
