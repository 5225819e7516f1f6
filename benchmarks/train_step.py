"""Times one training step by several recipes, on the same machine and in the same run, and counts the memory it takes.

    python benchmarks/train_step.py                                # the embedded base's size, on any machine
    python benchmarks/train_step.py --size sd14                    # Stable Diffusion 1.4's size, on a GPU
    python benchmarks/train_step.py --size sd14 --task lora

course:  the assignment's recipe: float32, one image at a time until the batch is full, gradient checkpointing, 8-bit
         Adam if installed, images decoded in the main process, VAE and text encoder in every step
library: the usual example script's step with diffusers' models at its best flags: bfloat16 where it is fast, for frozen
         weights too, TF32, no checkpointing, images decoded for it beforehand; VAE and text encoder in every step
ours:    this repository's step: latents and text embeddings from the cache, frozen weights in half precision on a GPU
ours, compiled: the same with --compile
ours, channels_last; ours, compiled, channels_last: the same two with the weights in that memory layout; if asked for
ours, low memory: the same as ours with gradient checkpointing and 8-bit Adam if installed

Each recipe runs in a process of its own, all of them once in every round.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import ROOT, Models, build_models, copy_as, device_name, pick_device
from recipes import ALL_RECIPES, RECIPES, Recipe

sys.path.insert(0, str(ROOT / "task_1_controlnet"))

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune import devices
from finetune.argument_types import positive_int
from finetune.data.images import square, to_tensor
from finetune.devices import HALF
from finetune.model.dtypes import cast
from finetune.objective import diffusion_loss
from finetune.optimizer import build_optimizer
from finetune.setup import place_frozen, precision_here, use_fast_attention

# bf16 tensor-core peaks without sparsity, from NVIDIA's data sheets, in FLOP/s.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12}


class Step:
    """One optimisation step on `batch_size` images by a recipe: `step()`."""

    def __init__(self, recipe: Recipe, task: str, models: Models, batch_size: int) -> None:
        self.recipe, self.task, self.models = recipe, task, models
        self.device = pick_device()
        precision = precision_here(recipe.precision)
        AcceleratorState._reset_state(reset_partial_state=True)  # another recipe's precision in the same process
        self.accelerator = Accelerator(mixed_precision=precision)
        self.frozen_dtype = HALF.get(precision, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.precision != "no"

        self.unet, trained = self.build()
        models.unet = models.controlnet = None  # the copies are what is trained: the originals would count as memory
        if recipe.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            trained.to(memory_format=torch.channels_last)
        self.set_checkpointing(recipe.checkpointing, trained)
        self.parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        eight_bit = recipe.eight_bit and importlib.util.find_spec("bitsandbytes") is not None
        optimizer = build_optimizer(self.parameters, 1e-5, eight_bit, self.device)
        self.trained, self.optimizer = self.accelerator.prepare(trained.train().to(self.device), optimizer)
        self.compiled = torch.compile(self.denoise) if recipe.compiled else self.denoise
        self.text_width = models.text_encoder.config.hidden_size
        self.text_length = models.text_encoder.config.max_position_embeddings
        self.prepare_data(batch_size)

    def build(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """The UNet, and what is trained: a ControlNet, or the same UNet with a LoRA of rank 4."""
        models, unet = self.models, self.models.unet
        if self.task == "controlnet" and self.recipe.own:
            unet = copy_as(UNet2DConditionModel, unet)
        if self.recipe.own:
            devices.keep_freed_memory(self.device)
            place_frozen(unet, self.accelerator)
            use_fast_attention(unet, self.device)
        else:
            cast(unet.requires_grad_(False).to(self.device), self.frozen_dtype)
        if self.task == "lora":
            unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
            for parameter in unet.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
            return unet, unet
        controlnet = models.controlnet
        if self.recipe.own:
            controlnet = copy_as(ControlNetModel, controlnet)
            use_fast_attention(controlnet, self.device)
        return unet, controlnet.requires_grad_(True)

    def set_checkpointing(self, on: bool, trained: torch.nn.Module) -> None:
        for model in (self.unet, trained):
            model.enable_gradient_checkpointing() if on else model.disable_gradient_checkpointing()

    def prepare_data(self, batch_size: int) -> None:
        """Noise for pictures: what is in them takes no time. The encoders are dropped where nothing needs them."""
        single = self.recipe.accumulate_single_images
        self.micro_batches, self.micro_size = (batch_size, 1) if single else (1, batch_size)
        side, models, self.files = self.models.resolution, self.models, []
        if self.recipe.decode:
            for seed in range(2):  # an image and its condition, stored at 512 px as Fill50K's are
                file = io.BytesIO()
                noise = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(noise).resize((512, 512)).save(file, "PNG")
                self.files.append(file.getvalue())
        self.pixels = torch.rand(self.micro_size, 3, side, side, device=self.device)
        self.tokens = models.tokenizer(
            ["gold circle with navy background"] * self.micro_size,
            padding="max_length", max_length=self.text_length, return_tensors="pt",
        ).input_ids.to(self.device)  # fmt: skip
        if self.recipe.own:
            shape = (self.micro_size, self.unet.config.in_channels, side // 8, side // 8)
            self.latents = torch.randn(shape, device=self.device)
            self.text = torch.randn(*self.tokens.shape, self.text_width, device=self.device)
            self.pixels = self.pixels.to(memory_format=torch.channels_last)
            models.vae = models.text_encoder = None
            return
        for encoder in (models.vae, models.text_encoder):
            cast(encoder.requires_grad_(False).to(self.device), self.frozen_dtype)

    def inputs(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, text embeddings and conditions of `count` images, at most a micro-batch."""
        condition, image = self.pixels[:count], self.pixels[:count]
        if self.recipe.decode:
            image, condition = (
                to_tensor(square(Image.open(io.BytesIO(file)), self.models.resolution))[None].to(self.device)
                for file in self.files
            )
        if self.recipe.own:
            return self.latents[:count], self.text[:count], condition
        with torch.no_grad():
            vae = self.models.vae
            latents = vae.encode((image * 2 - 1).to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            return latents.float(), self.models.text_encoder(self.tokens[:count])[0], condition

    def denoise(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        if self.task == "lora":
            return self.trained(noisy, timesteps, text).sample
        down, mid = self.trained(noisy, timesteps, text, condition, return_dict=False)
        dtype = self.unet.dtype
        residuals = {
            "down_block_additional_residuals": [residual.to(dtype) for residual in down],
            "mid_block_additional_residual": mid.to(dtype),
        }
        return self.unet(noisy, timesteps, text, **residuals).sample

    def loss(self, denoise: Callable[..., torch.Tensor], count: int) -> torch.Tensor:
        latents, text, condition = self.inputs(count)
        with self.accelerator.autocast():
            return diffusion_loss(partial(denoise, text=text, condition=condition), self.models.scheduler, latents)

    def count_flops(self) -> float:
        """Of all passes, forward and backward, for one image; uncompiled, as a counter sees nothing else.

        Attention is computed by plain matrix products: on a CPU the counter sees none of the fused kernels.
        """
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.loss(self.denoise, count=1).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()

    def __call__(self) -> None:
        for _ in range(self.micro_batches):
            self.accelerator.backward(self.loss(self.compiled, self.micro_size) / self.micro_batches)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(
    recipe: str, task: str, size: str, batch_size: int, steps: int, ready: Callable[[], Any] = lambda: None
) -> dict[str, float]:
    """Seconds of the first step and an image, FLOPs an image, bytes: the peak, weights, gradients and optimiser.

    `ready` is called when all is compiled and warm; the steps after it are those that are timed.
    """
    step = Step(ALL_RECIPES[recipe], task, build_models(size), batch_size)
    flops = step.count_flops()  # of one image, so that it takes less memory than a step and moves no peak
    reset_peak()
    start = time.perf_counter()
    step()
    synchronize()
    first = time.perf_counter() - start
    step()
    synchronize()
    ready()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    seconds = (time.perf_counter() - start) / steps / batch_size
    return {"first": first, "seconds": seconds, "flops": flops, "peak": peak_bytes(), **held_bytes(step)}


def reset_peak() -> None:
    devices.reset_peak(pick_device())


def peak_bytes() -> int:
    """The most that tensors held on the GPU since `reset_peak`; else the most this process ever held."""
    on_gpu = devices.peak_bytes(pick_device())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if on_gpu is None else on_gpu


def held_bytes(step: Step) -> dict[str, float]:
    """Bytes of the weights on the device, of gradients, and of the optimiser's state."""
    modules = [step.unet, step.trained, step.models.vae, step.models.text_encoder]
    weights = {p.data_ptr(): p.numel() * p.element_size() for m in modules if m is not None for p in m.parameters()}
    tensors = [t for state in step.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return {
        "weights": sum(weights.values()),
        "gradients": sum(p.numel() * p.element_size() for p in step.parameters),
        "optimizer": sum(t.numel() * t.element_size() for t in tensors),
    }


def synchronize() -> None:
    devices.synchronize(pick_device())


def in_own_process(recipe: str, args: argparse.Namespace) -> dict[str, float]:
    flags = ["--task", args.task, "--size", args.size, "--batch_size", str(args.batch_size), "--steps", str(args.steps)]
    run = subprocess.run(
        [sys.executable, __file__, *flags, "--only", recipe], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A row for each recipe: images a second with their spread, ratios, memory, and the share of the GPU's peak."""
    peak = next((flops for name, flops in PEAKS.items() if name in device_name()), None)

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in results[name])

    names = "recipe | images a second | against library | first step | peak memory | weights + gradients + optimiser"
    lines = [f"| {names} | of peak |", "|---|---|---|---|---|---|---|"]
    for name, runs in results.items():
        rates = sorted(1 / run["seconds"] for run in runs)
        ratio = f"{median('library', 'seconds') / median(name, 'seconds'):.2f}" if "library" in results else "–"
        held = " + ".join(f"{median(name, key) / 2**30:.2f}" for key in ("weights", "gradients", "optimizer"))
        share = f"{median(name, 'flops') / median(name, 'seconds') / peak:.0%}" if peak else ""
        lines.append(
            f"| {name} | {statistics.median(rates):.2f} ({rates[0]:.2f} to {rates[-1]:.2f}) | {ratio} "
            f"| {median(name, 'first'):.1f} s | {median(name, 'peak') / 2**30:.2f} GiB | {held} GiB | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["controlnet", "lora"], default="controlnet")
    parser.add_argument("--size", choices=["tiny_sd", "sd14"], default="tiny_sd")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="images a step, the same for all recipes")
    parser.add_argument("--steps", type=positive_int, default=10, help="steps that are timed in each round")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=list(ALL_RECIPES), default=list(RECIPES))
    parser.add_argument("--output", type=Path, default=None, help="write all figures to this JSON file too")
    parser.add_argument("--only", choices=list(ALL_RECIPES), default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.task, args.size, args.batch_size, args.steps)))
        return

    results: dict[str, Any] = {recipe: [] for recipe in args.recipes}
    for number in range(args.rounds):
        for recipe in args.recipes:
            print(f"round {number + 1} of {args.rounds}: {recipe}", file=sys.stderr)
            results[recipe].append(in_own_process(recipe, args))
    print(f"{args.task}, {args.size}, batch {args.batch_size}, on {device_name()}\n\n{table(results)}")
    if args.output:
        described = {"device": device_name(), "task": args.task, "size": args.size, "batch_size": args.batch_size}
        args.output.write_text(json.dumps({**described, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
