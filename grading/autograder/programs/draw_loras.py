"""Draws prompts with a base model, without and with each of some LoRAs, from the same noise.

    cd task_2_lora && python ../grading/autograder/programs/draw_loras.py --base ../tiny_sd --output_dir pictures \
        --prompt "a red car" --lora lora_1=FILE --lora lora_2=FILE

writes plain-0.png, lora_1-0.png, lora_2-0.png and so on, by the number of the prompt, and scores.json: with --clip how
well the pictures follow their prompts, with --dino how much they have in common with each other, both as cosines. Of a
LoRA that cannot be loaded or draws nothing, refused.json says why. The grader runs this; it uses the code of Task 2, in
whose folder it must start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Sequence

from PIL import Image

sys.path.insert(0, os.getcwd())

from drawing import generate, load_pipeline
from finetune.argument_types import file_path, natural_float, seed_int
from finetune.model.sampler import DrawingError
from finetune.setup import fail_clearly
from hub_metrics import clip_scores, dino_scores
from lora.files import LoraFileError, load_lora


def score(images: Sequence[Image.Image], prompts: Sequence[str], clip: str, dino: str) -> dict[str, float]:
    """Means over the pictures; a score whose model is not given is left out."""
    scores = {}
    if clip:
        scores["CLIP-T"] = sum(clip_scores(clip, images, prompts, images)["CLIP-T"]) / len(images)
    if dino and len(images) > 1:
        with_itself = sum(dino_scores(dino, images, images)["DINO"]) / len(images)
        scores["DINO"] = (len(images) * with_itself - 1) / (len(images) - 1)  # every picture is like itself
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="base model: folder or hub name")
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times")
    parser.add_argument("--lora", action="append", default=[], metavar="NAME=FILE", help="may be given several times")
    parser.add_argument("--guidance_scale", type=natural_float, default=7.5)
    parser.add_argument("--seed", type=seed_int, default=0)
    parser.add_argument("--clip", default="", help="CLIP model: folder or hub name")
    parser.add_argument("--dino", default="", help="DINO model: folder or hub name")
    parser.add_argument("--plain_is_drawn", action="store_true", help="plain-0.png and so on are there, unscored")
    parser.add_argument("--output_dir", type=file_path, required=True)
    args = parser.parse_args()

    pipeline = load_pipeline(args.base)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def draw(name: str) -> dict[str, float]:
        seeds = range(args.seed, args.seed + len(args.prompt))
        images = generate(pipeline, args.prompt, seeds, args.guidance_scale)
        for i, image in enumerate(images):
            image.save(args.output_dir / f"{name}-{i}.png")
        return score(images, args.prompt, args.clip, args.dino)

    scores = {"plain": {} if args.plain_is_drawn else draw("plain")}
    refused = {}
    for item in args.lora:
        name, _, file = item.partition("=")
        try:
            load_lora(pipeline, file)
            scores[name] = draw(name)
        except LoraFileError as error:
            refused[name] = f"It {error.what}: {error.advice}."
        except DrawingError as error:
            refused[name] = str(error)
        pipeline.unload_lora_weights()
    (args.output_dir / "scores.json").write_text(json.dumps(scores))
    (args.output_dir / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    with fail_clearly():
        main()
