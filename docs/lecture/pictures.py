"""Draws the lecture's picture of the first gradients from real steps on the embedded base; seconds on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "task_1_controlnet")]

from diffusion.controlnet import ControlNetModel  # noqa: E402
from diffusion.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from fill50k import RenderedFill50K  # noqa: E402
from finetune.data.images import to_tensor  # noqa: E402
from finetune.model.base import BaseModel  # noqa: E402
from finetune.objective import diffusion_loss  # noqa: E402

STEPS, SAMPLES, RESOLUTION = 4, 8, 64
# In the order in which they begin to learn.
PARTS = {
    "zero convolutions\nat the outputs": lambda net: [net.controlnet_down_blocks, net.controlnet_mid_block],
    "the copy": lambda net: [net.conv_in, net.time_embedding, net.down_blocks, net.mid_block],
    "zero convolution that ends\nthe condition's embedding": lambda net: [net.controlnet_cond_embedding.conv_out],
    "convolutions that\nread the condition": lambda net: [
        net.controlnet_cond_embedding.conv_in,
        net.controlnet_cond_embedding.blocks,
    ],
}


def gradient_norm(modules: list[torch.nn.Module]) -> float:
    gradients = [p.grad.flatten() for module in modules for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients).norm().item() if gradients else 0.0


def measure() -> dict[str, list[float]]:
    """The norm of each part's gradient in the first steps of a training."""
    torch.manual_seed(0)
    base = BaseModel.load(str(ROOT / "tiny_sd"))
    unet = UNet2DConditionModel.from_pretrained(ROOT / "tiny_sd", subfolder="unet").requires_grad_(False)
    controlnet = ControlNetModel.from_unet(unet, (8, 16, 32, 64))
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-3)
    samples = [sample for sample, _ in zip(RenderedFill50K(size=SAMPLES, resolution=RESOLUTION), range(SAMPLES))]
    condition = torch.stack([to_tensor(sample["conditioning_image"]) for sample in samples])
    latents = base.encode_images(torch.stack([to_tensor(sample["image"]) for sample in samples]) * 2 - 1)
    text = base.encode_prompts([sample["text"] for sample in samples])

    def predict(noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        down, mid = controlnet(noisy_latents, timesteps, text, condition, return_dict=False)
        return unet(noisy_latents, timesteps, text, None, down, mid).sample

    norms: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(STEPS):
        optimizer.zero_grad()
        diffusion_loss(predict, base.scheduler, latents).backward()
        for name, modules in PARTS.items():
            norms[name].append(gradient_norm(modules(controlnet)))
        optimizer.step()
    return norms


def draw(norms: dict[str, list[float]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(norms), figsize=(10, 2.6), sharey=True, constrained_layout=True)
    for axis, (name, values) in zip(axes, norms.items()):
        axis.bar(range(1, STEPS + 1), values, color="tab:blue")
        axis.set_yscale("symlog", linthresh=1e-6)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step")
        axis.set_xticks(range(1, STEPS + 1))
        for step, value in enumerate(values, 1):
            if value == 0:
                axis.annotate("0", (step, 0), ha="center", va="bottom")
    axes[0].set_ylabel("norm of the gradient")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    measured = measure()
    for part, values in measured.items():
        print(" ".join(part.split()), *(f"{value:.2e}" for value in values))
    draw(measured, HERE / "gradients.png")
