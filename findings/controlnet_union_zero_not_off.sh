#!/usr/bin/env bash
# Version: diffusers 0.42.1 (torch 2.14.1, Python 3.11)
# Behaviour: With one control ControlNetUnionModel multiplies what it returns with conditioning_scale, as ControlNet
#   does. With two or more it multiplies the controls on their way in, and returns the rest at full strength: with all
#   scales at 0 the control pictures have no say, but the residuals are there, and they change the U-Net's answer.
#   The pipeline turns control_guidance_start and control_guidance_end into such zeros, so these end nothing either.
# Output seen: mean size of the residuals at scales 1, 0.5, 0
#   one control 0.329, 0.164, 0; two controls 0.454, 0.247, 0.231, which move the U-Net's answer by up to 0.58
#   MultiControlNetUnionModel with two controls at 0: no residuals
# One would have guessed: The docstring: "the scale factor for ControlNet outputs"; 0 is off, and one number means the
#   same for one control and for two.
# What follows: Give MultiControlNetUnionModel (the pipeline takes a list, [controlnet, controlnet]) one control each,
#   at the price of a pass for each; or leave the ControlNet out where all scales are 0. A sweep over the scale with two
#   controls does not begin at the plain model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 torch==2.14.1
venv/bin/python - <<'PY'
import torch
from diffusers import ControlNetUnionModel, UNet2DConditionModel
from diffusers.models import MultiControlNetUnionModel

torch.manual_seed(0)
torch.set_grad_enabled(False)
SMALL = dict(
    block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8, norm_num_groups=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
)
unet = UNet2DConditionModel(sample_size=8, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **SMALL).eval()
union = ControlNetUnionModel(
    conditioning_embedding_out_channels=(16, 32), num_control_type=6, num_trans_channel=16, num_trans_head=4,
    num_trans_layer=1, num_proj_channel=16, addition_time_embed_dim=8, **SMALL,
).eval()
for weight in union.parameters():
    if not weight.any():  # zero at the start of a training: as if it were trained
        torch.nn.init.normal_(weight, std=0.1)

latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)
pictures = [torch.rand(1, 3, 16, 16) for _ in range(2)]
nothing = [torch.zeros(1, 3, 16, 16)] * 2


def kinds(modes):
    used = torch.zeros(1, 6)
    used[0, modes] = 1
    return used


def residuals(modes, scale, shown=pictures):
    answer = union(latents, 10, text, controlnet_cond=shown[:len(modes)], control_type=kinds(modes),
                   control_type_idx=modes, conditioning_scale=[scale] * len(modes))
    return [*answer.down_block_res_samples, answer.mid_block_res_sample]


def size(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).abs().mean().item()


def denoised(*extra):
    down, mid = (tuple(extra[:-1]), extra[-1]) if extra else (None, None)
    return unet(latents, 10, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


one = [size(residuals([0], scale)) for scale in (1.0, 0.5, 0.0)]
two = [size(residuals([0, 1], scale)) for scale in (1.0, 0.5, 0.0)]
print("residuals at scales 1, 0.5, 0: one control", [round(x, 3) for x in one], "two", [round(x, 3) for x in two])
assert abs(one[1] / one[0] - 0.5) < 1e-4 and one[2] == 0
assert two[2] > 0.3 * two[0], "two controls at 0 are off now"

off = residuals([0, 1], 0.0)
assert all(map(torch.equal, off, residuals([0, 1], 0.0, nothing))), "the pictures have a say at 0"
moved = [(denoised(*parts) - denoised()).abs().max().item() for parts in (residuals([0], 0.0), off)]
print("the U-Net's answer moves at scale 0: one control", moved[0], "two", round(moved[1], 3))
assert moved[0] == 0 and moved[1] > 0.01

several = MultiControlNetUnionModel([union, union])
down, mid = several(latents, 10, text, controlnet_cond=[[picture] for picture in pictures],
                    control_type=[kinds([0]), kinds([1])], control_type_idx=[[0], [1]], conditioning_scale=[0.0, 0.0],
                    return_dict=False)
print("MultiControlNetUnionModel at 0:", down, mid)
assert down is None and mid is None
PY
