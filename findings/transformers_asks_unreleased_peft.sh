#!/usr/bin/env bash
# Version: transformers 5.24.0 and 5.25.0, peft 0.21.2 (the newest of 2026-12-04), torch 2.14.1 (Python 3.11)
# Behaviour: Two releases of transformers in a row ask for peft 0.22.0, which is not released, but not everywhere: an
#   adapter is loaded without a question, and then can be neither read, chosen, switched off, on again nor deleted; a new
#   one cannot be added. `is_peft_available` says yes, and pip installs the newest of both together and finds nothing
#   broken, as the metadata does not ask for it.
# Output seen: "load_adapter: done", and for the other seven calls ValueError "The version of PEFT you are using is not
#   compatible, please use a version >= 0.22.0"; with 5.23.0 all eight are done
# One would have guessed: the newest releases of one organisation's libraries work together, or pip refuses them, and
#   what lets a model load an adapter lets it switch the adapter off.
# What follows: `transformers<5.24` until peft 0.22 is there (training a text encoder's LoRA begins with `add_adapter`).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile transformers==5.23.0 peft==0.21.2 torch==2.14.1 numpy 2> pip.txt || { cat pip.txt; exit 1; }
cat > make.py <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModel

torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=100)
CLIPTextModel(CLIPTextConfig(**sizes)).save_pretrained("encoder")
encoder = CLIPTextModel.from_pretrained("encoder")
get_peft_model(encoder, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
PY
cat > look.py <<'PY'
from peft import LoraConfig
from transformers import CLIPTextModel
from transformers.utils import is_peft_available

print("is_peft_available:", is_peft_available())
encoder = CLIPTextModel.from_pretrained("encoder")
calls = (
    ("load_adapter", lambda: encoder.load_adapter("adapter")),
    ("active_adapters", encoder.active_adapters),
    ("get_adapter_state_dict", encoder.get_adapter_state_dict),
    ("set_adapter", lambda: encoder.set_adapter("default")),
    ("disable_adapters", encoder.disable_adapters),
    ("enable_adapters", encoder.enable_adapters),
    ("add_adapter", lambda: encoder.add_adapter(LoraConfig(r=2, target_modules=["v_proj"]), "second")),
    ("delete_adapter", lambda: encoder.delete_adapter("default")),
)
for name, call in calls:
    try:
        call()
        print(f"{name}: done")
    except ValueError as error:
        print(f"{name}: {error}")
PY
venv/bin/python make.py 2> errors.txt || { tail -3 errors.txt; exit 1; }
for release in 5.23.0 5.24.0 5.25.0; do
    venv/bin/pip install -q --no-compile "transformers==$release" 2> pip.txt || { cat pip.txt; exit 1; }
    venv/bin/pip check
    venv/bin/python look.py 2> errors.txt > "$release.txt" || { tail -3 errors.txt; exit 1; }
    echo "transformers $release:" && cat "$release.txt"
done
refused="The version of PEFT you are using is not compatible, please use a version >= 0.22.0"
expect() { diff - "$1.txt" || { echo "transformers $1: changed"; exit 1; }; }
names="active_adapters get_adapter_state_dict set_adapter disable_adapters enable_adapters add_adapter delete_adapter"
printf '%s\n' "is_peft_available: True" "load_adapter: done" > head.txt
{ cat head.txt; for name in $names; do echo "$name: done"; done; } | expect 5.23.0
for release in 5.24.0 5.25.0; do
    { cat head.txt; for name in $names; do echo "$name: $refused"; done; } | expect "$release"
done
venv/bin/pip download -q --no-deps -d peft "peft>=0.22" 2> none.txt && { echo "peft 0.22 is released: changed"; exit 1; }
grep -q "No matching distribution found for peft>=0.22" none.txt && echo "peft 0.22 is not released"
