"""Trains a ControlNet for the embedded base by one recipe until its pictures follow their conditions, and times it.

`time_to_quality.py` starts it, once for every recipe and seed: python benchmarks/quality_runs.py '{"recipe": ...}'
"""

from __future__ import annotations

import io
import json
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from PIL import Image

from models import ROOT, TINY_SD, build_models, copy_as
from recipes import ALL_RECIPES, Recipe
from train_step import Step, synchronize

TASK_1 = ROOT / "task_1_controlnet"
sys.path.insert(0, str(TASK_1))

import train
from diffusion.controlnet import ControlNetModel
from diffusion.loading import load_pipeline
from evaluate import generate, held_out_samples, score_all
from fill50k import RenderedFill50K
from finetune.data.images import square, to_tensor
from finetune.model.sampler import DrawingError
from finetune.objective import batches_of_indices, seed_for
from finetune.run.checkpoints import write_file
from finetune.setup import fail_clearly, use_fast_attention

# All recipes are drawn alike, with the guidance that the base's model card recommends and the demo's steps, and learn
# from as many samples of the rendered Fill50K as the demo.
DRAWING = {"guidance_scale": 3.0, "num_inference_steps": 8}
SAMPLES = 2000


class Ended(Exception):
    """Nothing is left to find out."""


class Journal:
    """The curve of one run, kept after every check.

    Settings: `started` is the moment at which the first process was started, by the system's monotonic clock; `journal`
    a file; `target` the IoU that is wanted, `limit` the seconds after which nobody waits any longer, `conditions` how
    many are drawn at a check, `every` the steps between two.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.file = settings, Path(settings["journal"])
        new = {"checks": [], "reached": False, "not_counted": 0.0, "steps": 0, "samples": 0}
        self.kept = json.loads(self.file.read_text()) if self.file.is_file() else new
        self.before = self.kept["steps"], self.kept["samples"]  # of earlier stages

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.settings["started"] - self.kept["not_counted"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        synchronize()
        start = time.monotonic()
        yield
        self.kept["not_counted"] += time.monotonic() - start

    def count(self, steps: int, samples_per_step: int) -> None:
        """So many steps of this stage are made."""
        steps_before, samples_before = self.before
        self.kept["steps"] = steps_before + steps
        self.kept["samples"] = samples_before + steps * samples_per_step

    def check(self, iou: Callable[[], float]) -> None:
        """Raises Ended if the picture is good enough, or time is up."""
        at = self.seconds
        with self.paused():
            found = iou()
        self.kept["checks"].append({"seconds": at, "steps": self.kept["steps"], "iou": found})
        self.kept["reached"] = found >= self.settings["target"]
        self.keep()
        print(f"{at:7.0f} s, {self.kept['steps']:6} steps: IoU {found:.3f}", flush=True)
        if self.kept["reached"] or at > self.settings["limit"]:
            raise Ended

    def keep(self) -> None:
        write_file(self.file, json.dumps(self.kept) + "\n")


def train_ours(journal: Journal, flags: list[str]) -> None:
    """One stage, by Task 1's own program."""
    conditions, prompts, _ = held_out_samples(journal.settings["conditions"])
    draw_and_score, every = train.validate, journal.settings["every"]

    class Watched(train.Training):
        def optimization_step(self, *rest: Any) -> None:
            super().optimization_step(*rest)
            journal.count(self.step + 1, self.samples_per_step)

        def keep_best(self, found: dict[str, float]) -> None:
            """Nothing: a model on the disk at each of so many checks would take the recipe's time."""

    def check(*rest: Any) -> dict[str, float]:
        found: dict[str, float] = {}

        def iou() -> float:
            found.update(draw_and_score(*rest))
            return found.get("validation/mean_iou", 0.0)  # 0: what was drawn is no picture

        journal.check(iou)
        return found

    train.load_test_data = lambda: (conditions, prompts)
    train.generate = partial(generate, num_inference_steps=DRAWING["num_inference_steps"])
    train.validate, train.Training = check, Watched
    guidance = str(DRAWING["guidance_scale"])  # whatever the preset draws with
    sys.argv = ["train.py", *flags, "--validation_steps", str(every), "--validation_guidance_scale", guidance]
    train.main()
    journal.keep()


class RealStep(Step):
    """The benchmark's step on pictures that can be learnt from, decoded beforehand where the recipe does so."""

    def __init__(self, recipe: Recipe, batch_size: int, rate: float, seed: int) -> None:
        models = build_models("tiny_sd")
        for convolution in [*models.controlnet.controlnet_down_blocks, models.controlnet.controlnet_mid_block]:
            torch.nn.init.zeros_(convolution.weight)  # as any training starts; the benchmark's are a trained one's
        self.order = batches_of_indices(SAMPLES, 1, seed, 0)
        self.seed, self.number = seed, 0
        super().__init__(recipe, "controlnet", models, batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def prepare_data(self, batch_size: int) -> None:
        super().prepare_data(batch_size)
        prepared = png if self.recipe.decode else partial(pixels, side=self.models.resolution)
        self.pairs, texts = [], []
        for sample in (RenderedFill50K("train", SAMPLES)[i] for i in range(SAMPLES)):
            self.pairs.append((prepared(sample["image"]), prepared(sample["conditioning_image"])))
            texts.append(sample["text"])
        self.all_tokens = self.models.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        ).input_ids

    def __call__(self) -> None:
        torch.manual_seed(seed_for(self.seed, self.number) % 2**63)
        self.number += 1
        super().__call__()

    def inputs(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = [next(self.order)[0] for _ in range(count)]
        pairs = [self.pairs[i] for i in chosen]
        if self.recipe.decode:
            pairs = [[pixels(Image.open(io.BytesIO(file)), self.models.resolution) for file in pair] for pair in pairs]
        image, condition = (torch.stack(pictures).to(self.device).float() / 255 for pictures in zip(*pairs))
        with torch.no_grad():
            vae = self.models.vae
            latents = vae.encode((image * 2 - 1).to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            text = self.models.text_encoder(self.all_tokens[chosen].to(self.device))[0]
        return latents.float(), text, condition


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pixels(picture: Image.Image, side: int) -> torch.Tensor:
    """Bytes of shape (3, side, side): a quarter of the memory."""
    return (to_tensor(square(picture, side)) * 255).round().byte()


def train_library(journal: Journal, recipe: str, batch_size: int, rate: float, seed: int, steps: int | None) -> None:
    """The library's models and loop, or the course's; `steps` ends it where it is not ended by what it reached."""
    with journal.paused():  # pictures are ready on the disk, or in memory, for whoever reads them there
        step = RealStep(ALL_RECIPES[recipe], batch_size, rate, seed)
        conditions, prompts, _ = held_out_samples(journal.settings["conditions"])
        pipeline = load_pipeline(str(TINY_SD), copy_as(ControlNetModel, step.trained))
        for model in (pipeline.unet, pipeline.controlnet):
            use_fast_attention(model, pipeline.device)

    def iou() -> float:
        pipeline.controlnet.load_state_dict(step.trained.state_dict())
        try:
            images = generate(pipeline, conditions, prompts, **DRAWING)
        except DrawingError:  # a learning rate that is too high
            return 0.0
        return float(np.mean([score.iou for score in score_all(images, conditions, prompts)]))

    for made in range(1, (steps or sys.maxsize) + 1):
        step()
        journal.count(made, batch_size)
        if made % journal.settings["every"] == 0 or made == steps:
            journal.check(iou)


def main() -> None:
    settings = json.loads(sys.argv[1])
    journal = Journal(settings)
    torch.set_num_threads(settings["threads"])
    try:
        if settings["recipe"] == "ours":
            train_ours(journal, settings["flags"])
        else:
            names = ("recipe", "batch_size", "rate", "seed", "steps")
            train_library(journal, *(settings[name] for name in names))
    except Ended:
        pass


if __name__ == "__main__":
    with fail_clearly():
        main()
