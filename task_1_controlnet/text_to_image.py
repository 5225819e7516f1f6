"""Task 0: draws the five test prompts with the plain base model, without any ControlNet.

python text_to_image.py                                      # Stable Diffusion 1.4, on a GPU
python text_to_image.py --base ../tiny_sd --guidance_scale 3 # the embedded base, anywhere
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from examples import draw_grid, load_test_data
from finetune.argument_types import file_path, name_or_path, natural_float, sampling_steps, seed_int
from finetune.devices import drawing_dtype, keep_freed_memory, pick_device
from finetune.model.base import load_part
from finetune.model.dtypes import dtype_argument
from finetune.model.single_file import as_folder
from finetune.setup import fail_clearly, require_hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--base", type=name_or_path, default="CompVis/stable-diffusion-v1-4", help="folder, file, hub name"
    )
    parser.add_argument("--prompt", nargs="+", help="draw these instead of the test prompts")
    parser.add_argument("--num_inference_steps", type=sampling_steps, default=50)
    parser.add_argument("--guidance_scale", type=natural_float, default=7.5)
    parser.add_argument("--seed", type=seed_int, default=0)
    parser.add_argument("--output_dir", type=file_path, default=Path("../runs/text_to_image"))
    args = parser.parse_args()
    require_hardware(args.base)
    args.base = as_folder(args.base)

    device = pick_device()
    keep_freed_memory(device)
    dtype = drawing_dtype(device)
    text_encoder = load_part(CLIPTextModel, args.base, "text_encoder", dtype)
    argument = dtype_argument(StableDiffusionPipeline, dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(args.base, text_encoder=text_encoder, **argument)
    pipeline.to(device)

    prompts = args.prompt or load_test_data()[1]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(prompts):
        image = pipeline(
            prompt,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            # From the CPU on every machine: so a seed is the same picture everywhere, up to rounding.
            generator=torch.Generator().manual_seed(args.seed + i),
        ).images[0]
        image.save(args.output_dir / f"{i}.png")
        rows.append(([image], prompt))
    draw_grid(rows, ["generated"]).save(args.output_dir / "grid.png")
    print(f"{len(rows)} images and grid.png are in {args.output_dir}")


if __name__ == "__main__":
    with fail_clearly():
        main()
