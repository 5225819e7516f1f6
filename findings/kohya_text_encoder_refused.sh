#!/usr/bin/env bash
# Version: diffusers 0.42.1 with peft 0.21.2 (torch 2.14.1, Python 3.11); diffusers 0.28.0 does the same
# Behaviour: A LoRA of Kohya's layout that adapts q, k and v of the text encoder but not out_proj is refused:
#   "Could not automatically infer state dict type". With one more pair, for a single out_proj, the same file loads whole.
# Output seen: without out_proj: ValueError Could not automatically infer state dict type; with one out_proj: loads
# One would have guessed: Which layout a file has is told by how its names are written, not by which modules there are.
# What follows: Where such a file must be loaded, add a pair of zero matrices for one out_proj.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile \
    diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from transformers import CLIPTextConfig, CLIPTextModel


def load(names):
    small = dict(vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text_encoder = CLIPTextModel(CLIPTextConfig(**small))
    file = {}
    for name in names:
        key = f"lora_te_text_model_encoder_layers_{name}"
        file[f"{key}.lora_down.weight"], file[f"{key}.lora_up.weight"] = torch.randn(4, 16), torch.randn(16, 4)
        file[f"{key}.alpha"] = torch.tensor(4.0)
    state, alphas = Loader.lora_state_dict(file)
    try:
        Loader.load_lora_into_text_encoder(state, alphas, text_encoder, prefix="text_encoder", adapter_name="file")
    except ValueError as error:
        return f"ValueError {error}"
    adapted = sum("file" in getattr(module, "lora_A", {}) for module in text_encoder.modules())
    assert adapted == len(names)
    return "loads"


names = [f"{layer}_self_attn_{part}_proj" for layer in (0, 1) for part in "qkv"]
without, with_one = load(names), load([*names, "0_self_attn_out_proj"])
print(f"without out_proj: {without}; with one out_proj: {with_one}")
assert without == "ValueError Could not automatically infer state dict type" and with_one == "loads", "it loads now"
PY
