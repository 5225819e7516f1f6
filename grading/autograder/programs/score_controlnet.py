"""Draws with a ControlNet what the grader judges it by, and scores it: evaluate.py of Task 1 without the rest.

    cd task_1_controlnet && python ../grading/autograder/programs/score_controlnet.py --controlnet FOLDER \
        --base ../tiny_sd --num_conditions 32 --guidance_scale 3 --output_dir drawn

writes 0.png to 4.png, the five test conditions, and scores.json: the IoU of each of them, and of each held-out
condition; or, where numbers overflow, what is wrong. What evaluate.py draws besides, the same without ControlNet, is
the same for all. Pictures and scores are evaluate.py's to the bit. The grader runs this; it uses the code of Task 1,
in whose folder it must start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

sys.path.insert(0, os.getcwd())

from diffusion.loading import load_pipeline
from evaluate import generate, held_out_samples, score_all
from examples import load_test_data
from finetune.argument_types import file_path, natural_float, positive_int
from finetune.model.sampler import DrawingError
from finetune.setup import fail_clearly, use_fast_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controlnet", required=True, help="folder of a trained ControlNet")
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--num_conditions", type=positive_int, default=32, help="held-out conditions")
    parser.add_argument("--guidance_scale", type=natural_float, default=7.5)
    parser.add_argument("--output_dir", type=file_path, required=True)
    args = parser.parse_args()

    pipeline = load_pipeline(args.base, args.controlnet)
    for model in (pipeline.unet, pipeline.controlnet):
        use_fast_attention(model, pipeline.device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float] | str] = {}
    try:
        for name, (conditions, prompts, *_) in (
            ("test", load_test_data()),
            ("held_out", held_out_samples(args.num_conditions)),
        ):
            images = generate(pipeline, conditions, prompts, guidance_scale=args.guidance_scale)
            scores[name] = [one.iou for one in score_all(images, conditions, prompts)]
            if name == "test":
                for i, image in enumerate(images):
                    image.save(args.output_dir / f"{i}.png")
    except DrawingError:
        scores["problem"] = "the trained ControlNet draws what is not finite: the training diverged."
    (args.output_dir / "scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    with fail_clearly():
        main()
