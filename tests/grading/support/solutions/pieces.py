"""What right and wrong texts for the TODO places are put together from."""

from __future__ import annotations

import textwrap

from grading.files.items import TASK_1
from grading.handed_out.banners import read_parts
from grading.handed_out.record import ROOT

SOLUTION = read_parts(ROOT / TASK_1)
INDENT = {"1": 4, "2": 8, "3": 8, "4-1": 8, "4-2": 12}

CONV = "module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)"
ZERO = "for parameter in module.parameters(): nn.init.zeros_(parameter)"
MODULES = '("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")'
COPY = f"for name in {MODULES}: getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())"
DOWN = "down_block_res_samples = [f(x) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples)]"
MID = "mid_block_res_sample = self.controlnet_mid_block(sample)"
PAIRS = "zip(down_block_res_samples, down_block_additional_residuals)"


def without(copy: str, *modules: str) -> str:
    for module in modules:
        copy = copy.replace(f'"{module}", ', "").replace(f', "{module}"', "")
    return copy


def between_banners(todo: str, text: str) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n") + "\n", " " * INDENT[todo])
