#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.14.1, Python 3.11)
# Behaviour: A file of Kohya's layout may give each module its own alpha. If those of attention differ, all of attention
#   is loaded with the most frequent one: the others are too strong or too weak. PEFT warns of alpha_pattern keys that
#   "did not match any targeted module and were ignored"; the file loads. diffusers 0.28.0 with peft 0.12.0 loads each
#   module at its own alpha.
# Output seen: strength of each module over what the file says: to_q (alpha 4) 1.0, to_k (alpha 8) 0.5, to_v (alpha 4) 1.0
# One would have guessed: Each module counts alpha / rank with its own alpha, as Kohya's programs and ComfyUI compute it;
#   or the file is refused.
# What follows: Before a file goes to load_lora_weights, multiply each module's alpha into its matrix
#   (lora_up *= alpha / rank, alpha = rank).
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
from diffusers.loaders import StableDiffusionLoraLoaderMixin

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
block = "mid_block.attentions.0.transformer_blocks.0.attn1"
alphas = {"to_q": 4.0, "to_k": 8.0, "to_v": 4.0}
file, wanted = {}, {}
for name, alpha in alphas.items():
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    key = f"lora_unet_{block}.{name}".replace(".", "_")
    file.update({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)})
    wanted[name] = alpha / 4 * up @ down
state, network_alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(file)
StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas, unet, adapter_name="file")
seen = {}
for name, matrix in wanted.items():
    got = unet.get_submodule(f"{block}.{name}").get_delta_weight("file")
    seen[name] = round((got.norm() / matrix.norm()).item(), 4)
    assert torch.allclose(got, seen[name] * matrix, atol=1e-4)
print("strength of each module over what the file says:", seen, "by alphas", alphas)
assert seen == {"to_q": 1.0, "to_k": 0.5, "to_v": 1.0}, "each has its own alpha now"
PY
