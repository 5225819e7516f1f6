#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: diffusers.utils.convert_state_dict_to_kohya writes the rank as every module's alpha, whatever lora_alpha
#   was: an adapter trained with lora_alpha 16 at rank 4 comes out a quarter as strong, one with lora_alpha 2 twice as
#   strong. PEFT's state dict holds no alpha, the function takes none, and yet it writes one.
# Output seen: strength of the file over that of the adapter, rank 4: lora_alpha 16: 0.25, 4: 1.0, 2: 2.0
# One would have guessed: The exported file does what the adapter does; a converter that cannot know the alpha asks for
#   it, or leaves it out.
# What follows: Multiply the alphas of an exported file by lora_alpha / rank before it is handed on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile \
    diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def strength(lora_alpha):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    unet.add_adapter(LoraConfig(r=4, lora_alpha=lora_alpha, target_modules=["to_q"], init_lora_weights=False))
    file = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in get_peft_model_state_dict(unet).items()})
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"]
    exported = file[f"{name}.alpha"] / down.shape[0] * up @ down
    trained = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.get_delta_weight("default")
    factor = (exported.norm() / trained.norm()).item()
    assert torch.allclose(exported, factor * trained, atol=1e-6)
    return round(factor, 4)


seen = {lora_alpha: strength(lora_alpha) for lora_alpha in (16, 4, 2)}
print("strength of the file over that of the adapter, by lora_alpha at rank 4:", seen)
assert seen == {16: 0.25, 4: 1.0, 2: 2.0}, "the alpha is kept now"
PY
