"""Judges the two LoRAs: by their files, and where they belong to the embedded base by what they draw."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Mapping, Sequence

import numpy as np
from safetensors.numpy import save_file

from ..files.items import LORAS
from ..files.lora import SD_1, LoraReport, inspect_lora, plain_tensors
from ..files.lora_likeness import are_alike
from ..grades.numbers import Numbers
from ..grades.rubric import Lora
from ..sandbox.trusted import run_trusted
from .alignment import BASE, Shared
from .pictures import calm, change, contrast, read_picture, smoothness
from .proof.identity import identity
from .student_code import ROOT

TASK_2 = "task_2_lora"
PROGRAM = Path(__file__).resolve().parent / "programs" / "draw_loras.py"
PLAIN = "plain"


def judge_files(files: Mapping[str, Path]) -> tuple[dict[str, Lora], dict[str, LoraReport]]:
    """What the files alone say of each LoRA, and the reports of those that are good so far."""
    judged, good = {}, {}
    for name, path in files.items():
        report = inspect_lora(path)
        facts = f"A LoRA of rank {report.rank} for {report.base}." if report.ok else ""
        problem = report.problem
        for other in good if report.ok else ():
            if are_alike(path, files[other]):
                problem = f"It has the same weights as {other}: {LORAS[name]} needs a LoRA of its own."
        if problem is None:
            good[name] = report
        judged[name] = Lora(problem, " ".join(part for part in (facts, report.said, report.warning) if part))
    return judged, good


def judge_norm(report: LoraReport, numbers: Numbers) -> str | None:
    """What is wrong with how much a LoRA adds to the weights of its base model."""
    norm = math.hypot(*report.norms.values())
    least, most = numbers.lora_norm
    if norm < least:
        return f"It adds nearly nothing to the weights (norm {norm:.2g}, usual is {least} and more): train it longer."
    if norm > most:
        return f"It adds so much to the weights (norm {norm:.2g}) that the model is lost: train at a lower rate."
    return None


@dataclass(frozen=True)
class Drawn:
    """What a base model drew without and with each LoRA, by name: PNG files, and scores by models of the hub.

    `refused` has for each LoRA that could not be drawn with a sentence that says why.
    """

    pictures: Mapping[str, tuple[bytes, ...]]
    scores: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, str]


def draw(
    files: Mapping[str, Path],
    base: str,
    guidance_scale: float,
    numbers: Numbers,
    seconds: float,
    folder: Path,
    plain: Path | None = None,
) -> Drawn:
    """Draws the prompts without a LoRA and with each.

    Args:
        base: folder or name of the base model that all of them belong to.
        plain: a folder with the pictures without a LoRA, if they are kept.

    Raises:
        GraderError: if they cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean = {}
    for name, path in files.items():  # only the numbers that were judged: what else the file holds goes nowhere
        clean[name] = folder / f"{name}.safetensors"
        save_file(plain_tensors(path), clean[name])
    arguments = ["--base", base, "--output_dir", str(folder), "--seed", str(numbers.seed)]
    arguments += ["--guidance_scale", str(guidance_scale)]
    arguments += ["--clip", numbers.clip_model, "--dino", numbers.dino_model]
    arguments += [text for prompt in numbers.lora_prompts for text in ("--prompt", prompt)]
    if plain:
        shutil.copytree(plain, folder, dirs_exist_ok=True)
        arguments.append("--plain_is_drawn")
    arguments += [text for name, path in clean.items() for text in ("--lora", f"{name}={path}")]
    run_trusted([str(PROGRAM), *arguments], ROOT / TASK_2, seconds)
    scores, refused = (json.loads((folder / f"{name}.json").read_text()) for name in ("scores", "refused"))
    indices = range(len(numbers.lora_prompts))
    pictures = {name: tuple((folder / f"{name}-{i}.png").read_bytes() for i in indices) for name in scores}
    return Drawn(pictures, scores, refused)


def scores_in_words(own: Mapping[str, float], plain: Mapping[str, float]) -> str:
    """What the hub's models say of a LoRA's pictures, beside those without it; empty without such scores."""
    meaning = {"CLIP-T": "follow their prompts", "DINO": "are like each other"}
    return "".join(
        f" They {words} by {own[name]:.2f} ({name}), without it by {plain[name]:.2f}."
        for name, words in meaning.items()
        if name in own
    )


def is_noise(pixels: np.ndarray, numbers: Numbers) -> bool:
    return smoothness(pixels) < numbers.least_smoothness and calm(pixels) < numbers.least_calm


def judge_pictures(pictures: Sequence[bytes], plain: Sequence[bytes], numbers: Numbers) -> tuple[str | None, str]:
    """What is wrong with a LoRA's pictures, and what was measured."""
    drawn, without = ([read_picture(data) for data in some] for some in (pictures, plain))
    changed = mean(change(one, other) for one, other in zip(drawn, without))
    flat = sum(contrast(one) < numbers.least_contrast <= contrast(other) for one, other in zip(drawn, without))
    noisy = sum(is_noise(one, numbers) for one in drawn)
    facts = f"Its pictures differ from those without it by {changed:.1f} of 255."
    if changed < numbers.least_change:
        return f"It does not visibly change the pictures ({changed:.1f} of 255): train it longer.", facts
    if 2 * flat > len(drawn):
        return f"{flat} of {len(drawn)} pictures with it are one flat colour: train it at a lower rate.", facts
    if 2 * noisy > len(drawn):
        return f"{noisy} of {len(drawn)} pictures with it are noise: train it at a lower rate.", facts
    return None, facts


def judge_loras(
    files: Mapping[str, Path],
    shared: Shared,
    numbers: Numbers,
    seconds: float,
    folder: Path,
    kept: Path | None = None,
) -> tuple[dict[str, Lora], tuple[bytes, ...]]:
    """The judgement of each LoRA, and the pictures that the plain base model draws.

    Args:
        seconds: for the drawing.
        folder: an empty one, to work in.
        kept: the pictures that the embedded base draws without a LoRA, see `keep_plain`.

    Raises:
        GraderError: if pictures cannot be drawn.
    """
    judged, good = judge_files(files)
    plain: tuple[bytes, ...] = ()
    for base, model, guidance_scale in (
        (BASE, str(shared.base), numbers.guidance_scale),
        (SD_1, numbers.sd_base, numbers.sd_guidance_scale),
    ):
        own = {name: files[name] for name, report in good.items() if report.base == base}
        if own and model:
            there = kept if base == BASE else None
            drawn = draw(own, model, guidance_scale, numbers, seconds, folder / Path(model).name, there)
            plain = plain or drawn.pictures[PLAIN]
        for name in own:
            if model and name in drawn.refused:
                judged[name] = Lora(drawn.refused[name], judged[name].facts)
            elif model:
                problem, facts = judge_pictures(drawn.pictures[name], drawn.pictures[PLAIN], numbers)
                facts += scores_in_words(drawn.scores[name], drawn.scores[PLAIN])
                judged[name] = Lora(problem, f"{judged[name].facts} {facts}", drawn.pictures[name])
            else:
                facts = f"{judged[name].facts} Judged by its structure and norms; no pictures were drawn."
                judged[name] = Lora(judge_norm(good[name], numbers), facts)
    return judged, plain


def keep_plain(prepared: Path, numbers: Numbers, seconds: float) -> Path | None:
    """The folder of the pictures without a LoRA, which are the same for all hand-ins; drawn now if there is none.

    None where models of the hub score the pictures: nobody can tell here whether those are still the same.

    Raises:
        GraderError: if they cannot be drawn.
    """
    if numbers.clip_model or numbers.dino_model:
        return None
    settings = [numbers.lora_prompts, numbers.guidance_scale, numbers.seed]
    made_of = json.dumps(identity([TASK_2, "finetune", "grading/autograder/programs"], settings), sort_keys=True)
    folder = prepared / f"plain-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=prepared, prefix=".plain-") as temporary:
            work = Path(temporary) / PLAIN
            draw({}, str(ROOT / BASE), numbers.guidance_scale, numbers, seconds, work)
            for name in ("scores.json", "refused.json"):
                (work / name).unlink()
            work.rename(folder)
    return folder
