#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.14.1, transformers 5.23.0, Python 3.11)
# Behaviour: A saved FRoD adapter fits its base to the last bit only. The file holds one half of the decomposition of the
#   base's weights (V, with save_projection=True, the default); the other half is computed anew from the base at hand.
#   If that was rounded to float16, or one weight of 16,640 moved by 1e-6, its parts come in another order or with
#   other signs than those in the file, and the product is noise. An adapter that was not trained at all does it, too.
#   Nothing is said. On the very same weights it is exact.
# Output seen: how far the answer of base with adapter is from what it was when the adapter was saved
#   same base 0; base in half precision FRoD 1.37, LoRA 0.0003; one weight moved by 1e-6 FRoD 1.26, LoRA 3e-07
#   (the base's own answers moved by 0.0003 and 2e-07; the adapters had changed them by 0.10 and 0.50)
# One would have guessed: What is saved, "independent of regeneration" as the option's text says, is enough; a base
#   rounded to half, as nearly all are served, changes an adapted answer as little as it changes its own.
# What follows: Merge a FRoD adapter where it was trained and pass on the merged weights, or ship the very base with it.
#   After loading any adapter, compare one answer with a kept one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import warnings

import torch
from peft import FrodConfig, LoraConfig, PeftModel, get_peft_model

warnings.simplefilter("ignore")
torch.set_grad_enabled(False)
inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(9))


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4))).eval()


def in_half(model):
    return model.half().float()


def one_weight_moved(model):
    model[0].weight[0, 0] += 1e-6
    return model


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


ADAPTERS = {"FRoD": FrodConfig(progressbar=False), "LoRA": LoraConfig(r=4)}
for name, config in ADAPTERS.items():
    config.target_modules = ["0", "1", "2", "3"]
    for trained in (0.05, 0.0):
        model = get_peft_model(base(), config).eval()
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * trained
        answer = model(inputs)
        model.save_pretrained(f"{name}-{trained}")
        print(f"{name}, {'trained' if trained else 'fresh'}: changes answers by {apart(answer, base()(inputs)):.2g}")
        for what, change in (("same base", lambda it: it), ("in half", in_half), ("one weight moved", one_weight_moved)):
            plain = apart(change(base())(inputs), base()(inputs))
            loaded = PeftModel.from_pretrained(change(base()), f"{name}-{trained}").eval()
            moved = apart(loaded(inputs), answer)
            print(f"  {what}: the base's answer moves by {plain:.2g}, with the adapter by {moved:.2g}")
            assert plain < 1e-3
            if name == "FRoD" and plain > 0:
                assert moved > 0.5, "it bears a rounded base now"
            else:
                assert moved <= 2 * plain
PY
