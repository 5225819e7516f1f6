"""Times our sampling pipeline against diffusers' on the same weights, scheduler and noise, and compares the images.

    python benchmarks/sample.py                      # the embedded base and a ControlNet on it
    python benchmarks/sample.py --size sd14          # Stable Diffusion 1.4's size with random weights: a GPU's work

Each has a process of its own, and they draw in turn, so that what else the machine does hits both. The images must be
equal, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Iterator

import diffusers
import numpy as np
import torch

from models import ROOT, Models, build_models, copy_as, device_name, pick_device

sys.path.insert(0, str(ROOT / "task_1_controlnet"))

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune.argument_types import positive_int, sampling_steps
from finetune.devices import drawing_dtype, is_gpu, keep_freed_memory
from finetune.model.dtypes import cast
from finetune.model.sampler import sampling_scheduler


def ours(models: Models) -> StableDiffusionControlNetPipeline:
    keep_freed_memory(pick_device())  # as our programs do before they load a pipeline
    parts = copy_as(UNet2DConditionModel, models.unet), copy_as(ControlNetModel, models.controlnet)
    return assemble(StableDiffusionControlNetPipeline, *parts, models)


def library(models: Models) -> diffusers.StableDiffusionControlNetPipeline:
    parts = copy_as(diffusers.UNet2DConditionModel, models.unet), copy_as(diffusers.ControlNetModel, models.controlnet)
    return assemble(diffusers.StableDiffusionControlNetPipeline, *parts, models)


def assemble(pipeline_class: type, unet: torch.nn.Module, controlnet: torch.nn.Module, models: Models) -> Any:
    device = pick_device()
    dtype = drawing_dtype(device)
    scheduler = sampling_scheduler(models.scheduler.config)
    for model in (models.vae, models.text_encoder, unet, controlnet):
        cast(model, dtype)
    pipeline = pipeline_class(
        models.vae, models.text_encoder, models.tokenizer, unet, controlnet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


PIPELINES = {"library": library, "ours": ours}


def serve(connection: Connection, name: str, size: str, batch_size: int, num_inference_steps: int) -> None:
    """Draws whenever it is asked, until it is told to end: sends the images, and the seconds that one took."""
    models = build_models(size)
    torch.manual_seed(0)
    condition = torch.rand(batch_size, 3, models.resolution, models.resolution)
    pipeline = PIPELINES[name](models)
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": 3.0, "output_type": "np"}
    while connection.recv():
        generator = torch.Generator().manual_seed(0)
        start = time.perf_counter()
        images = pipeline(["gold circle"] * batch_size, condition, generator=generator, **settings).images
        connection.send((images, (time.perf_counter() - start) / batch_size))


@contextmanager
def process_of(name: str, *settings: Any) -> Iterator[Connection]:
    """A process that serves this pipeline: one allocator's habits must not be the other's, too."""
    context = multiprocessing.get_context("spawn")
    own, its = context.Pipe()
    process = context.Process(target=serve, args=(its, name, *settings), daemon=True)
    process.start()
    its.close()  # else its end would not be seen here
    yield own
    own.send(False)
    process.join()


def draw(connection: Connection) -> tuple[np.ndarray, float]:
    """Raises RuntimeError if the process has ended: what it said stands above."""
    connection.send(True)
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError("a process that draws has failed") from None


def compare(size: str, batch_size: int, num_inference_steps: int, repeats: int) -> dict[str, Any]:
    """Seconds an image of both, their ratios, and the largest difference between their images, in turn as above."""
    settings = size, batch_size, num_inference_steps
    with process_of("library", *settings) as of_library, process_of("ours", *settings) as of_ours:
        processes = {"library": of_library, "ours": of_ours}
        images = {name: draw(process)[0] for name, process in processes.items()}  # and warms up
        seconds = {name: [] for name in processes}
        for _ in range(repeats):
            for name, process in processes.items():
                seconds[name].append(draw(process)[1])
    return {
        "device": device_name(),
        "size": size,
        "resolution": images["ours"].shape[1],
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
        "seconds_an_image": seconds,
        "ratios": [library / own for library, own in zip(seconds["library"], seconds["ours"])],
        "largest_difference": float(np.abs(images["ours"] - images["library"]).max()),
    }


def images_are_equal(difference: float) -> bool:
    """On a GPU within what half precision leaves open. What is not a number is not equal to anything."""
    return difference <= (0.02 if is_gpu(pick_device()) else 0)


def words(result: dict[str, Any]) -> str:
    sizes = f"{result['resolution']} px, {result['num_inference_steps']} steps, batch {result['batch_size']}"
    lines = [f"{result['device']}, {result['size']}, {sizes}"]
    for name, values in result["seconds_an_image"].items():
        median, spread = statistics.median(values), f"({min(values):.3f} to {max(values):.3f})"
        lines.append(f"{name:8} {median:8.3f} s an image {spread}")
    ratios = result["ratios"]
    lines.append(f"ours is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny_sd", "sd14"], default="tiny_sd")
    parser.add_argument("--batch_size", type=positive_int, default=4, help="images drawn at once")
    parser.add_argument("--num_inference_steps", type=sampling_steps, default=20)
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="write the figures to this JSON file too")
    args = parser.parse_args()
    result = compare(args.size, args.batch_size, args.num_inference_steps, args.repeats)
    if not images_are_equal(result["largest_difference"]):
        sys.exit(f"The images differ by up to {result['largest_difference']}: the times mean nothing.")
    print(words(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
