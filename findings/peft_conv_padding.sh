#!/usr/bin/env bash
# Version: peft 0.21.2 (torch 2.13.0, Python 3.11)
# Behaviour: A LoRA on a convolution drops the layer's padding_mode and dilation: the inner convolution is made with
#   kernel, stride and padding only. On a circular convolution (how tileable pictures are made) the adapter pads with
#   zeros, so the border differs from the same adapter merged, where the interior agrees; on a dilated one the first
#   forward pass raises.
# Output seen:
#   circular: inside 6.6e-07, border 1.8e+00; zeros: 3.6e-07
#   dilation 2: RuntimeError: The size of tensor a (8) must match the size of tensor b (10) at non-singleton dimension 3
# One would have guessed: A merged adapter computes what the unmerged one does; a layer that cannot be adapted is
#   refused when it is wrapped.
# What follows: Set padding_mode after the LoRA is loaded, on its inner convolutions too, or merge first; else the
#   seam returns with the LoRA.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
x = torch.randn(1, 3, 8, 8)


def difference(mode):
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
    model = get_peft_model(torch.nn.Sequential(convolution), config).eval()
    with torch.no_grad():
        unmerged = model(x)
        model.merge_adapter()
        return (unmerged - model(x)).abs().amax((0, 1))


plain, circular = difference("zeros"), difference("circular")
inside = circular[1:-1, 1:-1].max().item()
border = max(circular[[0, -1]].max().item(), circular[:, [0, -1]].max().item())
print(f"circular: inside {inside:.1e}, border {border:.1e}; zeros: {plain.max():.1e}")
assert plain.max() < 1e-5 and inside < 1e-5 and border > 0.1, "the padding mode is kept now"

dilated = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=2, dilation=2)), config)
try:
    dilated(x)
except RuntimeError as error:
    print("dilation 2: RuntimeError:", error)
    assert "must match the size" in str(error)
else:
    raise SystemExit("a dilated convolution takes a LoRA now")
PY
