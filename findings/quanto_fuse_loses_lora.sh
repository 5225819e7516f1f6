#!/usr/bin/env bash
# Version: diffusers 0.42.1, peft 0.21.2 and optimum-quanto 0.2.7 (torch 2.13.0, Python 3.11)
# Behaviour: fuse_lora on a model that was loaded with diffusers' own QuantoConfig (deprecated, still there) takes the
#   LoRA away. It raises nothing and counts the layers as merged, but the outputs are the quantised base model's to the
#   bit, and unload_lora makes that final. Unfused the same LoRA works. PEFT takes quanto's layer for a torch.nn.Linear
#   and adds to weight.data; a quantised weight keeps its numbers elsewhere and never hears of it. int8, float8 and int4
#   alike, with safe_fusing=True, too.
# Output seen: greatest differences of the output
#   none   LoRA - base 0.144, fused - LoRA 5e-07, fused - base 0.144
#   int8   LoRA - base 0.144, fused - LoRA 0.144, fused - base 0
#   float8 LoRA - base 0.139, fused - LoRA 0.139, fused - base 0
#   int4   LoRA - base 0.146, fused - LoRA 0.146, fused - base 0
# One would have guessed: Fusing changes the speed and not the picture, up to the rounding of the quantisation; or it is
#   refused, as for other quantised layers that cannot be merged.
# What follows: Leave a LoRA on a quanto model unfused, or fuse it before quantising. Compare one output before and
#   after each fuse_lora.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile \
    diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 optimum-quanto==0.2.7 torch==2.13.0
venv/bin/python - <<'PY'
import torch
from diffusers import QuantoConfig, UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
).save_pretrained("unet")
latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)
lora = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)


@torch.no_grad()
def differences(kind, safe):
    unet = UNet2DConditionModel.from_pretrained("unet", quantization_config=QuantoConfig(kind) if kind else None).eval()

    def draw():
        return unet(latents, 10, text).sample

    base = draw()
    torch.manual_seed(1)
    unet.add_adapter(lora)
    unet.eval()
    unfused = draw()
    unet.fuse_lora(safe_fusing=safe)
    fused = draw()
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert layer.merged_adapters == ["default"]
    unet.unload_lora()
    assert torch.equal(draw(), fused)
    found = [(a - b).abs().max().item() for a, b in ((unfused, base), (fused, unfused), (fused, base))]
    print(f"{kind or 'none'}, safe {safe}, {type(layer.base_layer).__name__}:",
          "LoRA - base {:.3g}, fused - LoRA {:.3g}, fused - base {:.3g}".format(*found))
    return found


for safe in (False, True):
    effect, lost, left = differences(None, safe)
    assert effect > 0.05 and lost < 1e-5 and left > 0.05
    for kind in ("int8", "float8", "int4"):
        effect, lost, left = differences(kind, safe)
        assert effect > 0.05, "the LoRA has no effect before it is fused, either"
        assert lost == effect and left == 0, "a fused LoRA stays now"
PY
