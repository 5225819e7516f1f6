"""Scores a ControlNet: does what it draws follow the condition, and is it the ControlNet that makes it so?

    python evaluate.py --controlnet ../runs/demo/controlnet --base ../tiny_sd --output_dir ../runs/demo

writes generated/0.png to 4.png (the five test conditions and prompts), grid.png (condition, image, score) and
metrics.json (scores of the five, of held-out rendered conditions, by how their outlines are drawn, and of the same with
the ControlNet switched off).
For a ControlNet that learnt edges, --edges names the folder that make_canny.py made; its last samples are drawn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from PIL import Image

from diffusion.loading import load_pipeline
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from examples import draw_grid, load_test_data
from fill50k import RenderedFill50K, load_data
from finetune.argument_types import file_path, name_or_path, natural_float, natural_int, sampling_steps, seed_int
from finetune.data.images import square
from finetune.model.base import drawn_size
from finetune.model.sampler import as_pictures
from finetune.model.single_file import as_folder
from finetune.run.progress import progress_bar
from finetune.run.settings import data_behind
from finetune.setup import bf16_is_fast, fail_clearly, require_hardware, use_fast_attention
from metrics import DiscScore, edge_f1, score, summary
from rendered_discs import Line

# CIEDE2000 between the two colours of a held-out sample: where they are closer, no metric can see the disc.
MIN_COLOR_DIFFERENCE = 20.0
# How the outlines of the held-out samples are drawn: thickness (px of 512) and look. The two numbers have no common
# divisor, so sample i with number i of each in turn meets every pair, and twenty samples meet each once.
WIDTHS = (1, 2, 3, 5, 8)
LOOKS: dict[str, dict[str, bool]] = {
    "white on black": {},
    "soft": {"soft": True},
    "black on white": {"inverted": True},
    "JPEG": {"jpeg": True},
}
# Drawn at once: one image of 512 px, or sixteen of 128 px.
PIXELS_AT_ONCE = 512 * 512


def generate(
    pipeline: StableDiffusionControlNetPipeline,
    conditions: Sequence[Image.Image],
    prompts: Sequence[str],
    seed: int = 0,
    num_inference_steps: int = 20,
    guidance_scale: float = 7.5,
    conditioning_scale: float = 1.0,
    unconditional: str = "controlnet",
) -> list[Image.Image]:
    """One image for each condition and prompt, at the base model's size.

    Image i depends on `seed + i` and not on what shares its batch.
    `unconditional`: whose guess for the empty prompt guidance compares with, ControlNet's and the base's or the base's
    alone.

    Raises:
        DrawingError: if the model's numbers overflow.
    """
    # The size that the base was trained at: smaller or larger ones it draws worse, and figures would not compare.
    resolution = drawn_size(pipeline)
    batch_size = max(1, PIXELS_AT_ONCE // resolution**2)
    conditions = [square(condition, resolution) for condition in conditions]
    pipeline.set_progress_bar_config(disable=True)
    faster = pipeline.device.type == "cpu" and bf16_is_fast(pipeline.device)
    images: list[Image.Image] = []
    for start in progress_bar(range(0, len(prompts), batch_size), desc="Generating", leave=False):
        chosen = slice(start, start + batch_size)
        # One for each image, on the CPU: with one for all, what image 3 starts from would depend on how many fit in a
        # batch, and on a GPU the same seed gives other numbers.
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(prompts[chosen]))]
        with torch.autocast("cpu", torch.bfloat16, enabled=faster):
            pixels = pipeline(
                list(prompts[chosen]),
                conditions[chosen],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                controlnet_conditioning_scale=conditioning_scale,
                steer_unconditional=unconditional == "controlnet",
                generator=generators,
                output_type="np",
            ).images
        images += as_pictures(pixels)
    return images


def center(condition: Image.Image) -> Image.Image:
    """What `generate` shows the model of a condition: its centre square."""
    return square(condition, min(condition.size))


def score_all(
    images: Sequence[Image.Image], conditions: Sequence[Image.Image], prompts: Sequence[str]
) -> list[DiscScore]:
    """Scores each picture against the condition and the prompt that it was drawn with."""
    return [score(image, center(condition), prompt) for image, condition, prompt in zip(images, conditions, prompts)]


def results_grid(
    images: Sequence[Image.Image],
    conditions: Sequence[Image.Image],
    prompts: Sequence[str],
    scores: Sequence[DiscScore],
) -> Image.Image:
    """Condition, generated image, prompt and score side by side."""
    rows = []
    for image, condition, prompt, result in zip(images, conditions, prompts, scores):
        text = f"{prompt}\n\nIoU {result.iou:.3f}"
        if result.disc_color_difference is not None:
            text += (
                f"\ncolour difference (CIEDE2000)\ndisc {result.disc_color_difference:.1f}, "
                f"background {result.background_color_difference:.1f}"
            )
        rows.append(([condition, image], text))
    return draw_grid(rows, ["condition", "generated"])


def held_out_samples(number: int) -> tuple[list[Image.Image], list[str], list[tuple[str, str]]]:
    """Conditions that no training sees, their prompts, and for each condition the names of its thickness and look."""
    data = RenderedFill50K("test", number, min_color_difference=MIN_COLOR_DIFFERENCE)
    kinds = [(WIDTHS[i % len(WIDTHS)], list(LOOKS)[i % len(LOOKS)]) for i in range(number)]
    samples = [data.render(i, line=Line(width, **LOOKS[look])) for i, (width, look) in enumerate(kinds)]
    names = [(f"{width} px", look) for width, look in kinds]
    return [sample.conditioning_image for sample in samples], [sample.text for sample in samples], names


def by_outline(scores: Sequence[DiscScore], names: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """What the scores come to for each thickness and each look that is there."""
    groups = {
        name: [one for one, its_names in zip(scores, names) if name in its_names]
        for name in (*(f"{width} px" for width in WIDTHS), *LOOKS)
    }
    return {name: summary(group) for name, group in groups.items() if group}


def evaluate_discs(
    pipeline: StableDiffusionControlNetPipeline, num_conditions: int, settings: dict[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Scores the five test conditions and `num_conditions` held-out ones, and prints the table."""
    conditions, prompts = load_test_data()
    images = generate(pipeline, conditions, prompts, **settings)
    scores = score_all(images, conditions, prompts)
    save_images(images, results_grid(images, conditions, prompts, scores), output_dir)
    results = {"test": summary(scores), "test_scores": [asdict(s) for s in scores]}
    rows = {"test": results["test"]}

    if num_conditions:
        conditions, prompts, names = held_out_samples(num_conditions)
        # The control: 0.135 on the embedded base, 0.971 with ControlNet. Were the first as high, the base alone would
        # draw what the metric wants, and the second prove nothing.
        for name, scale in (("held_out_without_controlnet", 0.0), ("held_out", 1.0)):
            images = generate(pipeline, conditions, prompts, conditioning_scale=scale, **settings)
            scores = score_all(images, conditions, prompts)
            rows[name] = results[name] = summary(scores)
        results["held_out_scores"] = [asdict(s) for s in scores]
        results["held_out_by_outline"] = by_outline(scores, names)
        rows.update({f"  {name}": row for name, row in results["held_out_by_outline"].items()})

    print_table(rows)
    return results


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Prints summaries by their names; a figure that was not measured is a dash."""
    columns = {
        "mean IoU": ("mean_iou", ".3f"),
        "IoU > 0.8": ("share_above_0.8", ".0%"),
        "disc colour": ("median_disc_color_difference", ".1f"),
        "background": ("median_background_color_difference", ".1f"),
    }
    print(f"{'':30}" + "".join(f"{heading:>13}" for heading in columns))
    for name, row in rows.items():
        cells = (format(row[key], form) if key in row else "-" for key, form in columns.values())
        print(f"{name:30}" + "".join(f"{cell:>13}" for cell in cells))


def what_the_last_are(controlnet: str, folder: str, columns: Sequence[str], first: int) -> str:
    """What the samples of a folder from number `first` on are to a ControlNet: "held_out" or "trained_on", or
    "last_samples" where it is not known that all it was trained on are this folder's first samples."""
    # A figure on what was trained on says nothing about other conditions, and looks better: the label says which it is.
    behind = data_behind(Path(controlnet))
    if behind is None:
        return "last_samples"
    label = "held_out"
    contents = load_data(folder, *columns).contents()
    for identity in behind:
        number, fingerprint = identity.split(maxsplit=1)
        if load_data(folder, *columns, max_samples=int(number)).fingerprint != fingerprint:
            return "last_samples"
        # By picture: one that was trained on may come again with another caption.
        if not set(contents[: int(number)]).isdisjoint(contents[first:]):
            label = "trained_on"
    return label


def evaluate_edges(
    pipeline: StableDiffusionControlNetPipeline,
    controlnet: str,
    folder: str,
    columns: Sequence[str],
    num_conditions: int,
    settings: dict[str, Any],
    output_dir: Path,
) -> dict[str, Any]:
    """Scores the last `num_conditions` samples of a folder such as make_canny.py's, and prints the table.

    `columns` are those of pictures, conditions and captions.
    """
    data = load_data(folder, *columns)
    first = max(0, len(data) - num_conditions)
    label = what_the_last_are(controlnet, folder, columns, first)
    samples = [data[i] for i in range(first, len(data))]
    conditions, prompts = [s["conditioning_image"] for s in samples], [s["text"] for s in samples]
    results: dict[str, Any] = {}
    print(f"{'':30}{'mean F1 of edges':>18}")
    # Some edges are right by chance, as the base likes things in the middle: F1 was 0.31 without ControlNet, 0.90 with.
    for name, scale in ((f"{label}_without_controlnet", 0.0), (label, 1.0)):
        images = generate(pipeline, conditions, prompts, conditioning_scale=scale, **settings)
        scores = [edge_f1(image, center(condition)) for image, condition in zip(images, conditions)]
        results[name] = {"mean_edge_f1": float(np.mean(scores)), "edge_f1": scores}
        print(f"{name:30}{results[name]['mean_edge_f1']:18.3f}")
    if label != "held_out":
        print(
            f"The training may have seen these {len(samples)} of {len(data)}: leave the last out (--max_train_samples)"
        )
    rows = [
        ([sample["conditioning_image"], image], f"{sample['text']}\n\nF1 of edges {one:.3f}")
        for sample, image, one in zip(samples[:5], images, scores)
    ]
    save_images(images[:5], draw_grid(rows, ["condition", "generated"]), output_dir)
    (output_dir / "conditions").mkdir(exist_ok=True)  # the report shows them beside the images
    for i, condition in enumerate(conditions[:5]):
        condition.save(output_dir / "conditions" / f"{i}.png")
    named = {f"{i}.png": prompt for i, prompt in enumerate(prompts[:5])}
    (output_dir / "generated" / "prompts.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    return results


def save_images(images: Sequence[Image.Image], grid: Image.Image, output_dir: Path) -> None:
    (output_dir / "generated").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(output_dir / "generated" / f"{i}.png")
    grid.save(output_dir / "grid.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controlnet", type=name_or_path, required=True, help="folder of a trained ControlNet")
    parser.add_argument(
        "--base", type=name_or_path, default="CompVis/stable-diffusion-v1-4", help="folder, file, hub name"
    )
    parser.add_argument("--edges", default=None, metavar="FOLDER", help="score edges on this folder of make_canny.py")
    parser.add_argument("--image_column", default="image", help="that folder's column of images")
    parser.add_argument("--conditioning_image_column", default="conditioning_image", help="its column of conditions")
    parser.add_argument("--caption_column", default="text", help="its column of captions")
    parser.add_argument("--num_conditions", type=natural_int, default=100, help="held-out conditions (0: none)")
    parser.add_argument("--num_inference_steps", type=sampling_steps, default=20)
    parser.add_argument("--guidance_scale", type=natural_float, default=7.5)
    parser.add_argument(
        "--unconditional",
        choices=["controlnet", "base"],
        default="controlnet",
        help="whose guess for the empty prompt guidance compares with",
    )
    parser.add_argument("--seed", type=seed_int, default=0)
    parser.add_argument("--output_dir", type=file_path, required=True)
    args = parser.parse_args()
    if args.edges and args.num_conditions < 1:
        parser.error("--edges scores --num_conditions samples: at least 1")
    require_hardware(args.base)
    args.base = as_folder(args.base)

    pipeline = load_pipeline(args.base, args.controlnet)
    for model in (pipeline.unet, pipeline.controlnet):
        use_fast_attention(model, pipeline.device)
    settings = {
        "seed": args.seed,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "unconditional": args.unconditional,
    }
    if args.edges:
        columns = (args.image_column, args.conditioning_image_column, args.caption_column)
        shown = (args.edges, columns, args.num_conditions, settings, args.output_dir)
        results = evaluate_edges(pipeline, args.controlnet, *shown)
    else:
        results = evaluate_discs(pipeline, args.num_conditions, settings, args.output_dir)
    metrics = args.output_dir / "metrics.json"
    # allow_nan=False: a NaN is no JSON, and a file with one could not be read by other programs.
    metrics.write_text(json.dumps({"settings": settings, **results}, indent=2, allow_nan=False) + "\n")
    print(f"The picture: {args.output_dir / 'grid.png'}   All figures: {metrics}")


if __name__ == "__main__":
    with fail_clearly():
        main()
