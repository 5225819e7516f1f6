#!/usr/bin/env bash
# Version: peft 0.21.2 and lycoris-lora 4.1.3 (torch 2.13.0, Python 3.11)
# Behaviour: A DoRA at strength 0 is not off, and each library leaves on what the other takes away. PEFT's set_scale(0)
#   (diffusers' set_adapters and the scale of a call use it) drops B A and keeps the trained magnitudes, m W / |W|.
#   LyCORIS' set_multiplier(0) drops the magnitudes and keeps B A at full strength, W + B A. At strength 1 the two agree
#   on the same numbers, at 0.5 they differ by half of the adapter, and neither is halfway from base to full.
# Output seen: distance of outputs over the distance of base and full adapter
#   strength 1:   PEFT - LyCORIS 0.00, PEFT - base 1.00, LyCORIS - base 1.00
#   strength 0.5: PEFT - LyCORIS 0.49, PEFT - base 0.79, LyCORIS - base 0.80
#   strength 0:   PEFT - LyCORIS 0.99, PEFT - base 0.69, LyCORIS - base 0.72
# One would have guessed: As for a LoRA 0 is the base model, 1 the adapter, and what lies between is the same for all
#   who read the file.
# What follows: Compare with the base model by disabling or unloading a DoRA, not by a strength of 0; a strength that
#   looked right in one program is no advice for another.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile \
    peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 lycoris-lora==4.1.3 torch==2.13.0
venv/bin/python - <<'PY'
import copy
import logging

import torch
from lycoris import LycorisNetwork, create_lycoris
from peft import LoraConfig, get_peft_model

logging.disable()
torch.manual_seed(0)
layer = torch.nn.Linear(64, 64)
down, up = 0.08 * torch.randn(4, 64), 0.08 * torch.randn(64, 4)
weight = layer.weight.detach()
norm = weight.norm(dim=1, keepdim=True)
magnitude = norm * (1 + 0.2 * torch.randn(64, 1))
x = torch.randn(256, 64)

peft = get_peft_model(torch.nn.Sequential(copy.deepcopy(layer)),
                      LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["0"])).eval()
inner = peft.base_model.model[0]
inner.lora_A["default"].weight.data = down
inner.lora_B["default"].weight.data = up
inner.lora_magnitude_vector["default"].weight.data = magnitude[:, 0]

LycorisNetwork.apply_preset({"target_name": [".*"]})
lycoris = torch.nn.Sequential(copy.deepcopy(layer))
network = create_lycoris(lycoris, 1.0, linear_dim=4, linear_alpha=4, algo="lora", dora_wd=True, wd_on_output=True)
network.apply_to()
network.load_state_dict({**network.state_dict(), "lycoris_0.lora_down.weight": down, "lycoris_0.lora_up.weight": up,
                         "lycoris_0.dora_scale": magnitude})


@torch.no_grad()
def outputs(strength):
    inner.set_scale("default", strength)
    network.set_multiplier(strength)
    return peft(x), lycoris(x)


def with_weight(matrix):
    return torch.nn.functional.linear(x, matrix, layer.bias.detach())


changed = weight + up @ down
full = with_weight(magnitude * changed / changed.norm(dim=1, keepdim=True))
base = with_weight(weight)
for strength in (1.0, 0.5, 0.0):
    a, b = outputs(strength)
    halfway = base + strength * (full - base)
    pairs = {"PEFT - LyCORIS": (a, b), "PEFT - base": (a, base), "LyCORIS - base": (b, base),
             "PEFT - interpolated": (a, halfway), "LyCORIS - interpolated": (b, halfway)}
    found = {name: round(((p - q).norm() / (full - base).norm()).item(), 2) for name, (p, q) in pairs.items()}
    print("strength", strength, found)
    if strength == 1:
        assert torch.allclose(a, full, atol=1e-4) and torch.allclose(b, full, atol=1e-4)
    else:
        assert min(found.values()) > 0.2, "the two agree now, or 0 is off"
    if strength == 0:
        assert torch.allclose(a, with_weight(magnitude * weight / norm), atol=1e-4)
        assert torch.allclose(b, with_weight(changed), atol=1e-4)
with peft.disable_adapter():
    assert torch.equal(peft(x), layer(x))
PY
