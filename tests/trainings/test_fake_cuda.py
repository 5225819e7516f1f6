"""Steps of the trainings on CUDA tensors without contents: no GPU is needed to find what was left on the CPU.

PyTorch's fake tensors know device, shape and type; an operation on two devices raises. Their backward pass would need a
GPU, so it is the loss that is computed.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from accelerate.utils import is_torch_version
from diffusers import DDPMScheduler

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.devices import picture_layout, send
from finetune.model.base import BaseModel
from finetune.objective import diffusion_loss, drop_prompts
from lora.model import LoraDenoiser
from processes import BASE

pytestmark = pytest.mark.skipif(
    is_torch_version("<", "2.5") or not torch.backends.cuda.is_built() or torch.cuda.is_available(),
    reason="needs a newer PyTorch that is built for CUDA, and no GPU: with one, test_gpu.py shows more",
)
CUDA = torch.device("cuda", 0)


class Pretended:
    """What moves tensors and models to a GPU that is not there; within `mode` they may be computed with."""

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

        self.kind, self.mode = FakeTensor, FakeTensorMode(allow_non_fake_inputs=True)

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            empty = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
            return self.kind(self.mode, empty, CUDA)

    def model(self, model: torch.nn.Module) -> Any:
        for part in model.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = torch.nn.Parameter(self.tensor(weight), weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.tensor(buffer)
        return model


@pytest.fixture(scope="module")
def gpu() -> Pretended:
    return Pretended()


@pytest.fixture(scope="module")
def unet_config() -> dict:
    return UNet2DConditionModel.load_config(BASE, subfolder="unet")


@pytest.fixture(scope="module")
def step(gpu, unet_config) -> Callable[[torch.Tensor], torch.Tensor]:
    """ControlNet's loss for a condition, as train.py computes it."""
    unet = UNet2DConditionModel.from_config(unet_config).requires_grad_(False)
    controlnet = gpu.model(ControlNetModel.from_unet(unet, [8, 8, 8, 8]))
    unet = gpu.model(unet)
    latents = gpu.tensor(torch.empty(2, unet.config.in_channels, 8, 8))
    text = gpu.tensor(torch.empty(2, 4, unet.config.cross_attention_dim))

    def loss(condition: torch.Tensor) -> torch.Tensor:
        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            down, mid = controlnet(noisy, timesteps, dropped, condition, return_dict=False)
            return unet(noisy, timesteps, dropped, None, down, mid).sample

        with gpu.mode:
            dropped = drop_prompts(text, text[:1], 0.5)
            return diffusion_loss(predict, DDPMScheduler(), latents, snr_gamma=0.05)

    return loss


def test_all_of_a_controlnets_step_is_on_the_gpu(step, gpu):
    condition = gpu.tensor(torch.empty(2, 3, 64, 64)).contiguous(memory_format=picture_layout(CUDA))
    loss = step(condition)
    assert loss.device == CUDA and loss.dtype == torch.float32 and loss.requires_grad


def test_a_condition_that_was_left_on_the_cpu_is_found(step):
    with pytest.raises(Exception, match="same device"):
        step(torch.zeros(2, 3, 64, 64))


def test_a_timestep_that_is_a_number_reaches_the_gpu(gpu, unet_config):
    unet = gpu.model(UNet2DConditionModel.from_config(unet_config))
    with gpu.mode, torch.no_grad():
        sample = gpu.tensor(torch.empty(1, unet.config.in_channels, 8, 8))
        text = gpu.tensor(torch.empty(1, 4, unet.config.cross_attention_dim))
        for timestep in (37, 37.5, torch.tensor(37)):
            assert unet(sample, timestep, text).sample.device == CUDA


def test_all_of_a_loras_step_is_on_the_gpu(gpu):
    """As both trainings of Task 2 compute it, with a LoRA on the text encoder and weighted samples."""
    from diffusers import UNet2DConditionModel as LibraryUNet

    base = BaseModel.load(BASE)
    unet = LibraryUNet.from_config(LibraryUNet.load_config(BASE, subfolder="unet"))
    denoiser = gpu.model(LoraDenoiser(unet, base.text_encoder, rank=2, alpha=2, layers="all"))
    tokens = gpu.tensor(base.tokenizer(["a cat"] * 2, padding="max_length", return_tensors="pt").input_ids)
    latents, weights = gpu.tensor(torch.empty(2, unet.config.in_channels, 8, 8)), gpu.tensor(torch.empty(2))
    with gpu.mode:
        loss = diffusion_loss(
            lambda noisy, timesteps: denoiser(noisy, timesteps, tokens), base.scheduler, latents, None, 0.1, weights
        )
    assert loss.device == CUDA and loss.requires_grad


def test_what_is_sent_arrives(gpu):
    with gpu.mode:
        assert send(torch.zeros(2), CUDA).device == CUDA
