#!/usr/bin/env bash
# Version: safetensors 0.8.0 with torch 2.13.0 and diffusers 0.42.1 (Python 3.11, Linux)
# Behaviour: Loaded weights change when their file is overwritten in place (cp, shutil.copyfile, rsync --inplace):
#   load_file on the CPU hands out views of the mapped file, and diffusers' from_pretrained puts them into the model as
#   they are. Tensors that were read already change too. safetensors' own save_file writes a new file and renames it,
#   which is safe; load_state_dict copies, which is safe too.
# Output seen:
#   load_file, read (1.0), then copyfile: 2.0;  load_file, then save_file onto the path: 1.0;  copied: 1.0
#   a diffusers model, loaded and run, then copyfile: its weights are the other model's
# One would have guessed: Once load_file or from_pretrained has returned, the tensors are the program's own.
# What follows: Publish new weights by os.replace of a finished file, never by cp onto the old one while a server, an
#   evaluation or a training has it loaded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile safetensors==0.8.0 diffusers==0.42.1 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import shutil

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file


def write(path, value):
    save_file({"w": torch.full((1000,), value)}, path)


write("live.safetensors", 1.0)
write("other.safetensors", 2.0)
copied_over = load_file("live.safetensors")["w"]
module = torch.nn.ParameterDict({"w": torch.zeros(1000)})
module.load_state_dict(load_file("live.safetensors"))
assert copied_over.unique().tolist() == [1.0]
shutil.copyfile("other.safetensors", "live.safetensors")
write("saved.safetensors", 1.0)
saved_over = load_file("saved.safetensors")["w"]
write("saved.safetensors", 2.0)
after = {"copyfile": copied_over, "save_file": saved_over, "load_state_dict": module["w"]}
print({kind: tensor.unique().tolist() for kind, tensor in after.items()})
assert copied_over.unique().tolist() == [2.0], "loaded tensors no longer follow the file"
assert saved_over.unique().tolist() == module["w"].unique().tolist() == [1.0]

blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
model = UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
model.save_pretrained("first")
with torch.no_grad():
    for p in model.parameters():
        p.add_(1.0)
model.save_pretrained("second")
other = UNet2DModel.from_pretrained("second").state_dict()
served = UNet2DModel.from_pretrained("first").eval()
with torch.no_grad():
    served(torch.zeros(1, 3, 8, 8), 0)
assert not any(torch.equal(v, other[k]) for k, v in served.state_dict().items())
name = "diffusion_pytorch_model.safetensors"
shutil.copyfile(f"second/{name}", f"first/{name}")
same = all(torch.equal(v, other[k]) for k, v in served.state_dict().items())
print("the loaded model has become the other one:", same)
assert same, "a model of diffusers keeps its weights now"
PY
