"""Loads what the programs of both tasks load, in each of their ways; whatever the libraries have against it, they say.

python tests/support/wrappers/load_all.py FOLDER, in the root of the repository; the folder gets a ControlNet.
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator

sys.path[:0] = ["task_1_controlnet", "task_2_lora"]
import drawing
from diffusion import loading
from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.model.base import BaseModel
from finetune.setup import place_frozen

unet = UNet2DConditionModel.from_pretrained("tiny_sd", subfolder="unet")
ControlNetModel.from_unet(unet, (8, 16, 32, 64)).save_pretrained(sys.argv[1])
loading.load_pipeline("tiny_sd", sys.argv[1], torch.device("cpu"))
drawing.load_pipeline("tiny_sd", torch.device("cpu"))
place_frozen(unet, Accelerator(cpu=True, mixed_precision="bf16"))
BaseModel.load("tiny_sd")
