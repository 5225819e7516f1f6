#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: One call with a LoRA scale of 0 (cross_attention_kwargs={"scale": 0.0}, the picture "without the LoRA")
#   changes the adapter for all calls after it: the weight that set_adapters gave is gone and is 1.0. A scale of 0
#   cannot be divided out again, so unscale_lora_layers sets 1.0 in its place. Any other scale, 0.001 too, leaves the
#   weight as it was. Weights for each block are lost in the same way.
# Output seen: strength of the adapter in units of alpha / rank
#   weight 0.5: after set_adapters 0.5, after a call with scale 0.001 0.5, after a call with scale 0.0 1.0
#   weights by block: before down 0.2, mid 1.0, up 0.7; after down 1.0, mid 1.0, up 1.0
# One would have guessed: The scale of a call counts for that call: the next one draws what the one before drew.
# What follows: A grid of scales that begins with 0 draws all its pictures with another LoRA than was set. For the base
#   model use disable_lora() and enable_lora(), or call set_adapters again after each scale of 0.
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

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
).eval()
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)


@torch.no_grad()
def draw(**scale):
    return unet(latents, 10, text, cross_attention_kwargs=scale or None).sample


def strengths():
    """The adapter's strength in each part of the network."""
    return {part: layer.scaling["default"] for name, layer in unet.named_modules() if hasattr(layer, "scaling")
            for part in [name.split("_")[0]]}


unet.disable_lora()
base = draw()
unet.enable_lora()
unet.set_adapters("default", 1.0)
whole = draw()
unet.set_adapters("default", 0.5)
half = draw()
seen = [strengths()["mid"]]
draw(scale=0.001)
seen.append(strengths()["mid"])
assert torch.allclose(draw(), half, atol=1e-5)
assert torch.allclose(draw(scale=0.0), base, atol=1e-5)  # the call itself is right
seen.append(strengths()["mid"])
after = draw()
print("weight 0.5: after set_adapters", seen[0], "after scale 0.001", round(seen[1], 6), "after scale 0.0", seen[2])
print("the next picture: to half", (after - half).abs().max().item(), "to whole", (after - whole).abs().max().item())
assert seen[0] == 0.5 and abs(seen[1] - 0.5) < 1e-6
assert seen[2] == 1.0, "the weight survives a scale of 0 now"
assert torch.equal(after, whole) and not torch.allclose(after, half, atol=0.05)

unet.set_adapters("default", {"down": 0.2, "mid": 1.0, "up": 0.7})
before = strengths()
draw(scale=0.0)
print("weights by block: before", before, "after", strengths())
assert before == {"down": 0.2, "mid": 1.0, "up": 0.7}
assert strengths() == {"down": 1.0, "mid": 1.0, "up": 1.0}
PY
