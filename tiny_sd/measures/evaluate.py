"""Measures what the embedded base draws, for its model card: `PYTHONPATH=. python tiny_sd/measures/evaluate.py`.

Writes samples.png (64 prompts, seeds 0 to 63, nothing chosen) and prints how far the drawn colours are from the named
ones, how round the discs are, and how many of 200 everyday things, of 100 prints of them, of 100 places and of 48 pairs
are recognised in what was drawn for them. Things are looked at by a second judge too, if it is installed: `judge.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from finetune.data.colors import COLORS
from finetune.model.dtypes import dtype_argument
from finetune.model.sampler import sampling_scheduler
from tiny_sd.measures import judge
from tiny_sd.measures.recognition import recognise, recognise_pair, recognise_place, recognise_redrawn, roundness
from tiny_sd.pictures.icons import STYLES, load_subjects
from tiny_sd.pictures.places import PLACES
from tiny_sd.pictures.scenes import (
    INKS,
    NAMES,
    ONE_CIRCLE,
    ONE_PRINT,
    ONE_SHAPE,
    ONE_THING,
    PAPERS,
    PLAIN,
    SHAPES,
    THING_SOMEWHERE,
    TWO_SHAPES,
    TWO_THINGS,
    is_held_out,
)
from tiny_sd.training.train_vae import autocast

BASE = Path(__file__).resolve().parents[1]
GUIDANCE_SCALE = 3.0


def prompts_for(templates: list[str], count: int, seed: int) -> list[tuple[str, str, str]]:
    """Prompts with their two colours, over pairs that training never showed and an eye can tell apart."""
    rng, chosen = np.random.default_rng(seed), []
    while len(chosen) < count:
        a, b, c = (NAMES[i] for i in rng.choice(len(NAMES), 3, replace=False))
        s, z = (str(name) for name in rng.choice(list(SHAPES)[1:], 2, replace=False))
        lab = rgb2lab(np.array([COLORS[a], COLORS[b]]) / 255)
        if is_held_out(a, b) and deltaE_ciede2000(*lab) >= 20:
            template = templates[len(chosen) % len(templates)]
            chosen.append((template.format(a=a, b=b, c=c, s=s, z=z), a, b))
    return chosen


def prompts_for_things(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts for different everyday things in all wordings, and what each asks for."""
    rng, subjects = np.random.default_rng(seed), list(load_subjects().values())
    chosen = []
    for i, subject in enumerate(rng.permutation(subjects)[:count]):
        words = {"n": subject, "b": str(rng.choice(NAMES)), "k": str(rng.choice(list(STYLES)))}
        chosen.append((ONE_THING[i % len(ONE_THING)].format(**words), str(subject)))
    return chosen


def prompts_for_prints(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts for prints of different everyday things, with rays and without, and what each asks for."""
    rng, subjects = np.random.default_rng(seed), list(load_subjects().values())
    chosen = []
    for i, subject in enumerate(rng.permutation(subjects)[:count]):
        ink, paper = str(rng.choice(INKS)), str(rng.choice(PAPERS))
        words = {"n": subject, "a": ink, "b": paper, "g": " with rays" if rng.random() < 0.5 else ""}
        chosen.append((ONE_PRINT[i % len(ONE_PRINT)].format(**words), str(subject)))
    return chosen


def prompts_for_places(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts for different everyday things in all places in turn, and the place that each asks for."""
    rng, subjects, places = np.random.default_rng(seed), list(load_subjects().values()), list(PLACES)
    chosen = []
    for i, subject in enumerate(rng.permutation(subjects)[:count]):
        words = {"n": subject, "k": str(rng.choice(list(STYLES))), "w": places[i % len(places)]}
        chosen.append((THING_SOMEWHERE[i % len(THING_SOMEWHERE)].format(**words), words["w"]))
    return chosen


def prompts_for_pairs(count: int, seed: int) -> list[tuple[str, set[str]]]:
    """Prompts for two different everyday things side by side, and what each asks for."""
    rng, subjects = np.random.default_rng(seed), list(load_subjects().values())
    chosen = []
    for i in range(count):
        n, m = (str(subject) for subject in rng.choice(subjects, 2, replace=False))
        words = {"n": n, "m": m, "b": str(rng.choice(NAMES)), "k": str(rng.choice(list(STYLES)))}
        chosen.append((TWO_THINGS[i % len(TWO_THINGS)].format(**words), {n, m}))
    return chosen


def draw(pipeline: StableDiffusionPipeline, prompts: list[str]) -> np.ndarray:
    """Images (len(prompts), 128, 128, 3) in 0..1; image i has seed i. In bfloat16 where that is fast: 612 are many."""
    images = []
    for start in range(0, len(prompts), 16):
        chosen = prompts[start : start + 16]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(chosen))]
        settings = {"num_inference_steps": 20, "guidance_scale": GUIDANCE_SCALE, "output_type": "np"}
        with autocast(pipeline.device):
            images.append(pipeline(chosen, generator=generators, **settings).images)
    return np.concatenate(images)


def as_images(arrays: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]


def draw_samples(pipeline: StableDiffusionPipeline) -> Image.Image:
    """The model card's grid: 8 x 8 pictures."""
    templates = ONE_CIRCLE[:4] + ONE_SHAPE[:2] + TWO_SHAPES[:1] + PLAIN
    things = prompts_for_things(20, seed=0) + prompts_for_places(12, seed=1) + prompts_for_prints(16, seed=0)
    images = draw(pipeline, [prompt for prompt, *_ in prompts_for(templates, 16, seed=0) + things])
    grid = images.reshape(8, 8, 128, 128, 3).transpose(0, 2, 1, 3, 4).reshape(1024, 1024, 3)
    return as_images(grid[None])[0]


def measure_discs(pipeline: StableDiffusionPipeline) -> None:
    """Prints how 100 discs in unseen pairs of colours come out."""
    chosen = prompts_for(ONE_CIRCLE, 100, 1)
    shapes, grounds, areas, centers, rounds = [], [], [], [], []
    for image, (_, a, b) in zip(draw(pipeline, [p for p, _, _ in chosen]), chosen):
        lab = rgb2lab(image)
        named = [rgb2lab(np.array(COLORS[name]) / 255) for name in (a, b)]
        disc = deltaE_ciede2000(lab, named[0][None, None]) < deltaE_ciede2000(lab, named[1][None, None])
        areas.append(disc.mean())
        if 0 < disc.mean() < 1:
            shapes.append(deltaE_ciede2000(np.median(lab[disc], axis=0), named[0]))
            grounds.append(deltaE_ciede2000(np.median(lab[~disc], axis=0), named[1]))
            centers.append(np.argwhere(disc).mean(0))
            rounds.append(roundness(disc))
    print(f"100 prompts over unseen colour pairs, guidance {GUIDANCE_SCALE:g}, seeds 0 to 99:")
    print(f"a disc is there in {np.mean([0.005 < area < 0.95 for area in areas]):.0%}")
    print(f"median colour difference (CIEDE2000): disc {np.median(shapes):.1f}, background {np.median(grounds):.1f}")
    print(f"median overlap (IoU) of a disc with the circle that fits it best: {np.median(rounds):.3f}")
    print(f"discs cover {np.min(areas):.0%} to {np.max(areas):.0%} of the picture (median {np.median(areas):.0%})")
    print(f"standard deviation of their centres: {np.std(centers, axis=0).round(1)} px")


def measure_things(pipeline: StableDiffusionPipeline) -> None:
    """Prints how many pictures show what their prompts ask for, and who says so."""
    judges = {"everyday things": {"recognition.py": recognise}}
    if judge.is_installed():
        judges["everyday things"]["judge.py"] = judge.recognise
    else:
        print(f"The second judge is not installed: pip install {judge.PACKAGES}")
    for name, prompts, recognisers in (
        ("everyday things", prompts_for_things(200, seed=1), judges["everyday things"]),
        ("prints", prompts_for_prints(100, seed=2), {"recognition.py": recognise_redrawn}),
        ("things in places", prompts_for_places(100, seed=3), {"recognition.py": recognise_place}),
        ("pairs of things", prompts_for_pairs(48, seed=4), {"recognition.py": recognise_pair}),
    ):
        images = as_images(draw(pipeline, [prompt for prompt, _ in prompts]))
        for who, recogniser in recognisers.items():
            shown = [one == wanted for one, (_, wanted) in zip(recogniser(images), prompts)]
            print(f"{len(prompts)} prompts for {name}, seeds from 0: {np.mean(shown):.0%} are recognised ({who})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Writes samples.png into the folder.")
    parser.add_argument("folder", type=Path, nargs="?", default=BASE, help="pipeline to measure; otherwise this one")
    folder = parser.parse_args().folder
    pipeline = StableDiffusionPipeline.from_pretrained(folder, **dtype_argument(StableDiffusionPipeline, torch.float32))
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler.config)
    draw_samples(pipeline).save(folder / "samples.png")
    measure_discs(pipeline)
    measure_things(pipeline)


if __name__ == "__main__":
    main()
