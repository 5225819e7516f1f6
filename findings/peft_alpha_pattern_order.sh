#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: Of several keys of alpha_pattern that match a module the first in the dictionary wins, not the most exact,
#   and save_pretrained writes the dictionary sorted by name. {"up.to_q": 32, "to_q": 4} gives up.to_q a scale of 8
#   while it is trained and 1 after saving and loading, without a word; the weights load, the strength is another.
# Output seen: scale of up.to_q: trained with 8.0, loaded with 1.0
# One would have guessed: An adapter saved and loaded is the same adapter; or the more exact key wins, whatever the
#   order.
# What follows: Keys of a pattern must not overlap: write them as regular expressions that exclude each other
#   ("down.to_q", "up.to_q").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 8)})
        self.down = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 8)})

    def forward(self, x):
        return self.up["to_q"](x) + self.down["to_q"](x)


def scales(model):
    blocks = model.base_model.model
    return [module["to_q"].scaling["default"] for module in (blocks.up, blocks.down)]


torch.manual_seed(0)
base = Blocks()
pattern = {"up.to_q": 32, "to_q": 4}
config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], alpha_pattern=pattern, init_lora_weights=False)
trained = get_peft_model(copy.deepcopy(base), config).eval()
trained.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(copy.deepcopy(base), "adapter").eval()
x = torch.randn(2, 8)
print("scales of up and down: trained", scales(trained), "loaded", scales(loaded))
weights = {k: v for k, v in loaded.state_dict().items() if "lora" in k}
assert weights and all(torch.equal(v, trained.state_dict()[k]) for k, v in weights.items())
assert scales(trained) == [8, 1] and scales(loaded) == [1, 1], "the order of the pattern survives now"
assert not torch.allclose(trained(x), loaded(x), atol=0.1)
PY
