#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.14.1, Python 3.11)
# Behaviour: fuse_qkv_projections, meant to make attention faster, builds one layer from the weights of to_q, to_k
#   and to_v. With a LoRA loaded it takes those below the LoRA: of all it learned in these three only to_q of the cross
#   attentions is left, and no strength changes the rest. A LoRA loaded afterwards fares the same. Nothing is said. The
#   other way round, a LoRA that fuse_lora merged before stays in when unfuse_lora takes it out.
# Output seen: largest change that the LoRA makes in the U-Net's answer
#   LoRA 0.106; then fuse_qkv_projections 0.0204; unfused 0.106. LoRA in self attention alone, at strength 10, fused 0
#   fuse_lora, fuse_qkv_projections, unfuse_lora: 0.106 is still there
# One would have guessed: An optimisation gives the same picture, within rounding; or refuses a model with a LoRA, as it
#   refuses one with added projections.
# What follows: fuse_lora first, then fuse_qkv_projections; call unfuse_qkv_projections and fuse anew whenever a LoRA or
#   its strength changes. Compare one answer before and after each "optimisation".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile \
    diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
torch.set_grad_enabled(False)
latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)
ALL, SELF = ["to_q", "to_k", "to_v"], r".*attn1\.to_[qkv]"


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


plain = unet()(latents, 10, text).sample


def change(model):
    """What the LoRA makes of the answer."""
    return (model(latents, 10, text).sample - plain).abs().max().item()


def with_lora(model, layers=ALL):
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=False))
    return model


model = with_lora(unet())
lora = change(model)
model.fuse_qkv_projections()
left = change(model)
model.unfuse_qkv_projections()
print(f"LoRA {lora:.3g}, with fused projections {left:.3g}, unfused {change(model):.3g}")
assert change(model) == lora and left < lora / 3, "the LoRA is kept now"

late = unet()
late.fuse_qkv_projections()
print(f"loaded afterwards {change(with_lora(late)):.3g}")
assert abs(change(late) - left) < 1e-5

model = with_lora(unet(), SELF)
alone = change(model)
model.fuse_qkv_projections()
model.set_adapters("default", 10.0)
print(f"self attention alone {alone:.3g}, with fused projections, at strength 10, {change(model):.3g}")
assert alone > 0.01 and change(model) < 1e-5

model = with_lora(unet())
model.fuse_lora()
model.fuse_qkv_projections()
merged = change(model)
model.unfuse_lora()
print(f"fuse_lora before {merged:.3g}, and after unfuse_lora {change(model):.3g}")
assert abs(merged - lora) < 1e-4 and change(model) > 0.5 * lora
PY
