#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.14.1, transformers 5.23.0, Python 3.11)
# Behaviour: With two adapters active, merging gives another model than the one that was running, for two methods. OFT
#   turns the input by the first adapter, then by the second; merging turns the weights by them in the opposite order.
#   C3A feeds its second adapter with what the first one made of the input, in place of the input; merged they add up.
#   (So C3A with two adapters fails outright on a layer whose two sides differ.) Unmerging gives the former again.
# Output seen: how far the merged change is from that of the two active adapters
#   LoRA 2.6e-07, BOFT 4.3e-07, OFT 0.32 (4.2e-07 from that of the adapters named the other way round), C3A 0.86
#   (1.5e-06 from the sum of the two)
# One would have guessed: merge_adapter and merge_and_unload make the same model faster, within rounding, as they do for
#   two adapters of any of the twenty other methods tried, and for a single OFT or C3A.
# What follows: Merge adapters of these two one at a time, and compare an answer before and after; for OFT name them the
#   other way round. Do not judge a pair of C3A adapters by the running model if the merged one is to be served.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import warnings

import torch
from peft import BOFTConfig, C3AConfig, LoraConfig, OFTConfig, get_peft_model

warnings.simplefilter("ignore")
torch.set_grad_enabled(False)
inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(9))


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 32)).eval()


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


def with_two(config):
    model = get_peft_model(base(), config, adapter_name="one").eval()
    model.add_adapter("two", config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "base_layer" not in name and parameter.is_floating_point():
            parameter += torch.randn_like(parameter) * 0.1
    return model


CONFIGS = {
    "LoRA": LoraConfig(r=4),
    "BOFT": BOFTConfig(boft_block_size=4),
    "OFT": OFTConfig(oft_block_size=4),
    "C3A": C3AConfig(block_size=4),
}
for name, config in CONFIGS.items():
    config.target_modules = ["0"]
    model, plain = with_two(config), base()(inputs)

    def change(*active):
        model.base_model.set_adapter(list(active))
        return model(inputs) - plain

    the_sum, reversed_order = change("one") + change("two"), change("two", "one")
    both = change("one", "two")
    model.merge_adapter(["one", "two"])
    merged = model(inputs) - plain
    model.unmerge_adapter()
    assert apart(model(inputs) - plain, both) < 1e-4
    unloaded = model.merge_and_unload()(inputs) - plain
    assert apart(unloaded, merged) < 1e-4
    print(f"{name}: merged is {apart(merged, both):.2g} from the two active ones, {apart(merged, reversed_order):.2g} "
          f"from them in the opposite order, {apart(merged, the_sum):.2g} from the sum of each alone")
    if name in ("LoRA", "BOFT"):
        assert apart(merged, both) < 1e-4
    else:
        assert apart(merged, both) > 0.2, f"{name} merges what was active now"
        assert apart(merged, reversed_order if name == "OFT" else the_sum) < 1e-4
PY
