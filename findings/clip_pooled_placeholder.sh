#!/usr/bin/env bash
# Version: transformers 5.23.0 (torch 2.13.0, Python 3.11)
# Behaviour: With a placeholder token added (textual inversion) CLIP's pooled text embedding is read at the placeholder,
#   not at the end of the prompt, where the config says eos_token_id 2, as those of the older checkpoints do: then the
#   end is taken to be the highest id, and the new token's is higher. The words after it have no influence at all, since
#   the attention looks back only. With the tokenizer's own eos_token_id it is right. A comment in the library's source
#   says so; nothing is said when the embeddings are resized or the model runs.
# Output seen: changing the words behind the placeholder moves the pooled embedding
#   eos_token_id 2: by 0.0;  eos_token_id 9, the tokenizer's: by 1.60
#   eos_token_id 2, then config.eos_token_id = 9: by 0.0;  then text_model.eos_token_id = 9: by 1.60
# One would have guessed: The pooled embedding is that of the end of the text, whatever words were added, so that a
#   model that draws with it, such as SDXL, sees the whole prompt.
# What follows: Set text_model.eos_token_id to the tokenizer's; to change the config of a loaded model is not enough.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile transformers==5.23.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

BOS, EOS, PLACEHOLDER = 8, 9, 10
ONE = torch.tensor([[BOS, 3, PLACEHOLDER, 4, 5, EOS, EOS, EOS]])
TWO = torch.tensor([[BOS, 3, PLACEHOLDER, 7, 6, EOS, EOS, EOS]])


def build(eos_token_id):
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    config = CLIPTextConfig(
        vocab_size=10, max_position_embeddings=12, bos_token_id=BOS, eos_token_id=eos_token_id, **sizes
    )
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(config).eval()
    model.resize_token_embeddings(11, mean_resizing=False)
    return model


def influence(model, first=ONE, second=TWO):
    with torch.no_grad():
        return (model(first).text_embeds - model(second).text_embeds).abs().max().item()


model = build(2)
old, new = influence(model), influence(build(EOS))
ordinary = influence(model, *(torch.where(ids == PLACEHOLDER, 2, ids) for ids in (ONE, TWO)))
print("eos_token_id 2:", old, "eos_token_id 9:", new, "an ordinary word in the placeholder's place:", ordinary)
model.config.eos_token_id = EOS
config_changed = influence(model)
model.text_model.eos_token_id = EOS
model_changed = influence(model)
print("config changed:", config_changed, "model changed:", model_changed)
assert old == 0, "the pooled embedding sees the words behind the placeholder now"
assert new > 0.1 and ordinary > 0.1
assert config_changed == 0 and model_changed > 0.1, "the end of the text is taken from elsewhere now"
PY
