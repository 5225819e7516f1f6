#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: load_lora_adapter(..., hotswap=True) puts another LoRA in the place of a loaded one, at the strength of its
#   own alpha / rank. The next set_adapters, with weight 1.0, too, turns it to the alpha / rank of the first file, as
#   the layers still hold that. A LoRA of alpha 8 and rank 8 behind one of alpha 1 and rank 8 then counts an eighth; the
#   other way round it counts eight times. The same files loaded without hotswap are right.
# Output seen: strength of the second LoRA, alpha / rank
#   1/8 then 8/8: swapped in 1.0, after set_adapters(1.0) 0.125; loaded afresh 1.0, after set_adapters(1.0) 1.0
#   8/8 then 1/8: swapped in 0.125, after set_adapters(1.0) 1.0; loaded afresh 0.125, after set_adapters(1.0) 0.125
# One would have guessed: A weight of 1.0 is the adapter as it is in its file, however it was loaded.
# What follows: Before LoRAs are swapped bring all to one alpha / rank (multiply it into lora_B, set alpha = rank), or
#   leave set_adapters alone after a swap.
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
from peft import LoraConfig, get_peft_model_state_dict

torch.manual_seed(0)
latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)
RANK = 8


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


def load(model, seed, alpha, **swap):
    """Loads a LoRA as from a file: its weights, and an alpha for each layer."""
    source = unet()
    torch.manual_seed(seed)
    source.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k"], init_lora_weights=False))
    weights = {f"unet.{key}": value.clone() for key, value in get_peft_model_state_dict(source).items()}
    alphas = {key.replace(".lora_A.weight", ".alpha"): float(alpha) for key in weights if ".lora_A." in key}
    model.load_lora_adapter(weights, prefix="unet", network_alphas=alphas, adapter_name="style", **swap)


def strength_and_picture(model):
    layer = model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    with torch.no_grad():
        return float(layer.scaling["style"]), model(latents, 10, text).sample


for prepared in (False, True):
    for first, second in ((1, 8), (8, 1)):
        fresh = unet()
        load(fresh, 2, second)
        right, picture = strength_and_picture(fresh)
        fresh.set_adapters("style", 1.0)
        assert strength_and_picture(fresh)[0] == right == second / RANK

        model = unet()
        if prepared:
            model.enable_lora_hotswap(target_rank=RANK)
        load(model, 1, first)
        load(model, 2, second, hotswap=True)
        swapped, same = strength_and_picture(model)
        model.set_adapters("style", 1.0)
        after, other = strength_and_picture(model)
        print(f"prepared {prepared}, {first}/{RANK} then {second}/{RANK}: swapped in {swapped},",
              f"after set_adapters(1.0) {after}; afresh {right};",
              f"pictures differ by {(other - picture).abs().max().item():.2g}")
        assert swapped == right and torch.allclose(same, picture, atol=1e-5)
        assert after == first / RANK, "the second file's alpha counts now"
        assert not torch.allclose(other, picture, atol=0.02)
PY
