#!/usr/bin/env bash
# Version: lycoris-lora 4.1.3 (torch 2.13.0, Python 3.11)
# Behaviour: Merging a LoHa multiplies with alpha / dim twice. merge_to(1.0) gives the base model alpha / dim times what
#   the network computed while it was trained: with dim 16 and alpha 1 a sixteenth of it. LoRA and LoKr of the same
#   network merge to what they computed. With alpha = dim nothing is wrong, so a first try may well not show it.
#   precise=True and a network that was made from a file merge so, too.
# Output seen: size of the merged change over the size of the trained one, dim 16
#   alpha 16: lora 1.0, lokr 1.0, loha 1.0
#   alpha 8: lora 1.0, lokr 1.0, loha 0.5
#   alpha 1: lora 1.0, lokr 1.0, loha 0.0625
# One would have guessed: A merged network computes what the network beside the model computed, whatever the algorithm.
# What follows: Merge a LoHa of this library with merge_to(dim / alpha), or set alpha = dim for the training; look at
#   one output before and after the merge.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile lycoris-lora==4.1.3 torch==2.13.0
venv/bin/python - <<'PY'
import logging

import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights

logging.disable()
LycorisNetwork.apply_preset({"target_name": [".*"]})
x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64))


def ratio(algorithm, alpha, way):
    model = base()
    network = create_lycoris(model, 1.0, linear_dim=16, linear_alpha=alpha, algo=algorithm)
    network.apply_to()
    random = torch.Generator().manual_seed(1)
    for parameter in network.parameters():  # stands for a training
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    trained = model(x) - base()(x)
    if way == "file":
        model = base()
        network, _ = create_lycoris_from_weights(1.0, None, model, network.state_dict())
        network.merge_to(1.0)
    else:
        network.restore()
        assert torch.equal(model(x), base()(x))
        network.merge_to(1.0, **({"precise": True} if way == "precise" else {}))
    merged = model(x) - base()(x)
    share = (merged.norm() / trained.norm()).item()
    assert torch.allclose(merged, share * trained, atol=1e-4)  # the same change, of another size
    return round(share, 4)


with torch.no_grad():
    for way in ("plain", "precise", "file"):
        for alpha in (16, 8, 1):
            seen = {algorithm: ratio(algorithm, alpha, way) for algorithm in ("lora", "lokr", "loha")}
            print(f"{way}, dim 16, alpha {alpha}: merged over trained", seen)
            assert seen["lora"] == seen["lokr"] == 1
            assert seen["loha"] == alpha / 16, "a LoHa merges whole now"
PY
