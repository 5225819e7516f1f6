#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: unfuse_lora does not undo the lora_scale of fuse_lora: the scale stays on the adapter and multiplies with
#   the next. After fuse_lora(lora_scale=0.5) and unfuse_lora the adapter draws at half its strength,
#   fuse_lora(lora_scale=1.0) fuses half, and a second fuse_lora(lora_scale=0.5) a quarter.
# Output seen:
#   fuse 0.5 -> fused 0.5, after unfusing 0.5
#   fuse 1.0 -> fused 0.5, after unfusing 0.5
#   fuse 0.5 -> fused 0.25, after unfusing 0.25
#   fuse 1.0 -> fused 0.25, after unfusing 0.25
#   after set_adapters with weight 0.5: fuse 1.0 -> fused 0.5
# One would have guessed: Fusing at s fuses s times the adapter each time, and unfusing gives back what was there.
# What follows: Give the strength to set_adapters, which sets it, and fuse at 1.0.
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
from peft import LoraConfig


def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


unet = small_unet()
attention = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
base = attention.to_q.weight.detach().clone()
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
layer = attention.to_q
update = layer.get_delta_weight("default").detach().clone()
seen = []
for scale in (0.5, 1.0, 0.5, 1.0):
    unet.fuse_lora(lora_scale=scale)
    fused = ((layer.base_layer.weight - base).norm() / update.norm()).item()
    unet.unfuse_lora()
    after = (layer.get_delta_weight("default").norm() / update.norm()).item()
    seen.append((round(fused, 3), round(after, 3)))
    print(f"fuse {scale} -> fused {seen[-1][0]}, after unfusing {seen[-1][1]}")
unet.set_adapters("default", 0.5)
unet.fuse_lora()
by_weight = ((layer.base_layer.weight - base).norm() / update.norm()).item()
print("after set_adapters with weight 0.5: fused", round(by_weight, 3))
assert seen == [(0.5, 0.5), (0.5, 0.5), (0.25, 0.25), (0.25, 0.25)], "unfusing resets the scale now"
assert abs(by_weight - 0.5) < 1e-4
PY
