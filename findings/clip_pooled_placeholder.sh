#!/usr/bin/env bash
# Version: transformers 5.23.0 (torch 2.13.0, Python 3.11)
# Behaviour: With a placeholder token added (textual inversion, DreamBooth with a new word) the pooled text embedding
#   is read at the placeholder, not at the end of the prompt, if the config says eos_token_id 2, as the configs of
#   Stable Diffusion 1.x, 2.x and SDXL's text encoders do: then the end is taken to be the highest id, and the new
#   token's id is higher. All words after it have no influence, since the attention looks back only. With the true
#   eos_token_id it is right.
# Output seen:
#   eos_token_id 2: changing the words behind the placeholder moves the pooled embedding by 0.0
#   eos_token_id 9: by 1.52
# One would have guessed: The pooled embedding is that of the end of the text, whatever words were added; SDXL, which
#   draws with it, sees the whole prompt.
# What follows: Set text_encoder_2.config.eos_token_id and text_model.eos_token_id to the tokenizer's before adding
#   tokens.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.23.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

BOS, EOS, PLACEHOLDER = 8, 9, 10
ONE = torch.tensor([[BOS, 3, PLACEHOLDER, 4, 5, EOS, EOS, EOS]])
TWO = torch.tensor([[BOS, 3, PLACEHOLDER, 7, 6, EOS, EOS, EOS]])


def influence(eos_token_id, first, second):
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    config = CLIPTextConfig(
        vocab_size=10, max_position_embeddings=12, bos_token_id=BOS, eos_token_id=eos_token_id, pad_token_id=EOS, **sizes
    )
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(config).eval()
    model.resize_token_embeddings(11)
    with torch.no_grad():
        return (model(first).text_embeds - model(second).text_embeds).abs().max().item()


old, new = influence(2, ONE, TWO), influence(EOS, ONE, TWO)
print("eos_token_id 2:", old, "eos_token_id 9:", new)
assert old == 0, "the pooled embedding sees the words behind the placeholder now"
assert new > 0.1
ordinary = [torch.where(ids == PLACEHOLDER, 2, ids) for ids in (ONE, TWO)]
assert influence(2, *ordinary) > 0.1
PY
