"""Task 2's evaluation and notebook: real runs, and the hub's measures on small models of the same layout."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from closeness import means_of
from drawing import PIXELS_AT_ONCE, generate, images_at_once, load_pipeline
from finetune.model.base import BaseModelError
from hub_metrics import clip_scores, dino_scores
from hub_models import save_small_clip, save_small_dino
from lora.files import load_lora
from lora.model import save_lora, save_state
from made_loras import random_lora
from processes import ROOT, run_notebook, run_python
from small_bases import small_base

TASK = ROOT / "task_2_lora"
NOTEBOOK = TASK / "inference.ipynb"


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return save_lora(random_lora(base=small_base()), tmp_path_factory.mktemp("lora"), kohya=False)


def noise_pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(count)]


def test_the_program_writes_pictures_and_figures(lora, tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    for i, image in enumerate(noise_pictures(2)):
        image.save(training / f"{i}.png")
    flags = ["--base", small_base(), "--lora", str(lora), "--measure", "style", "--train_data_dir", str(training)]
    flags += ["--prompts", "a cat", "gold circle", "--num_seeds", "2", "--num_inference_steps", "2"]
    flags += ["--unconditional", "base"]
    run = run_python("evaluate.py", *flags, "--output_dir", tmp_path / "out", folder=TASK)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [len(results["scores"][name]["style"]) for name in ("base", "lora", "true")] == [4, 4, 2]
    assert results["means"]["base"]["style"] == pytest.approx(np.mean(results["scores"]["base"]["style"]))
    assert f"{results['means']['lora']['style']:.3f}" in run.stdout
    for name, count in (("base", 2), ("lora", 2), ("generated", 1)):
        prompts = json.loads((tmp_path / "out" / name / "prompts.json").read_text())
        assert list(prompts.values()) == ["a cat"] * count + ["gold circle"] * count
        assert all((tmp_path / "out" / name / file).exists() for file in prompts)
    pictures = [np.asarray(Image.open(tmp_path / "out" / name / "0.png")) for name in ("base", "lora")]
    assert not np.array_equal(*pictures)
    pipeline = load_pipeline(small_base(), torch.device("cpu"))
    load_lora(pipeline, lora)
    (by_hand,) = generate(pipeline, ["a cat"], [0], num_inference_steps=2, unconditional="base")
    assert np.abs(np.asarray(by_hand, int) - pictures[1]).max() <= 1
    assert Image.open(tmp_path / "out" / "grid.png").width > 4 * 64


def test_pictures_of_an_earlier_evaluation_do_not_stay_among_the_new_ones(tmp_path):
    program = runpy.run_path(str(TASK / "evaluate.py"))
    (tmp_path / "grid.png").write_bytes(b"another's")
    for count in (3, 2):
        program["save"](noise_pictures(count), ["a"] * count, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["0.png", "1.png", "grid.png"]


@pytest.mark.parametrize("size", [8, [8, 8]])
def test_a_bases_size_is_a_number_or_a_pair(size):
    pipeline = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(sample_size=size)), vae_scale_factor=8)
    assert images_at_once(pipeline) == PIXELS_AT_ONCE // 64**2


@pytest.mark.parametrize("which, least", [("random", 0.01), ("empty", 0), ("scaled to nothing", 0)])
def test_the_classs_drift_is_measured_with_the_subject(which, least, lora, tmp_path):
    """A LoRA that does nothing moves nothing."""
    if which == "empty":
        denoiser = random_lora(base=small_base())
        for parameter in denoiser.trainable_parameters():
            parameter.data.zero_()
        lora = save_lora(denoiser, tmp_path, kohya=False)
    scale = 0 if which == "scaled to nothing" else 1
    run = run_python(
        "evaluate.py", "--base", small_base(), "--lora", str(lora), "--measure", "subject", "--lora_scale", str(scale),
         "--train_data_dir", "sample_data/dreambooth-cat", "--prompts", "a sks cat", "--class_prompt", "a cat",
         "--num_seeds", "2", "--num_inference_steps", "2", "--output_dir", tmp_path / "out", folder=TASK,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [len(results["scores"][name]["subject"]) for name in ("base", "lora")] == [2, 2], "no class among the scores"
    moved = results["drift"]["pictures"]
    assert len(moved) == 6 and min(moved) >= least and (which == "random" or max(moved) == 0)
    assert f'drift of "a cat": {np.mean(moved):.0%} of the way to the subject' in run.stdout
    for name in ("class-base", "class-lora"):
        prompts = json.loads((tmp_path / "out" / name / "prompts.json").read_text())
        assert prompts == {f"{i}.png": "a cat" for i in range(6)} and (tmp_path / "out" / name / "5.png").exists()


def evaluate_in_vain(lora, folder) -> str:
    """The sentence with which the program ends, without a file."""
    run = run_python(
        "evaluate.py", "--base", small_base(), "--lora", str(lora), "--measure", "style",
         "--train_data_dir", "sample_data/artistic-custom/train", "--output_dir", str(folder / "out"),
         "--num_seeds", "1", "--num_inference_steps", "2", folder=TASK,
    )  # fmt: skip
    assert run.returncode != 0 and "Traceback" not in run.stderr and not (folder / "out").exists()
    return run.stderr


def test_a_lora_that_is_not_there_is_named(tmp_path):
    assert f"Error: {tmp_path / 'none'} is not there" in evaluate_in_vain(tmp_path / "none", tmp_path)


def test_a_checkpoints_inner_folder_is_not_measured(lora, tmp_path):
    denoiser = random_lora(base=small_base())
    save_state(denoiser, denoiser.state_dict(), tmp_path / "checkpoint-6" / "lora")
    shutil.copy(lora, tmp_path)
    sentence = evaluate_in_vain(tmp_path / "checkpoint-6" / "lora", tmp_path)
    assert "is a checkpoint from the middle of a training" in sentence and f"use {tmp_path / lora.name}." in sentence


def test_a_lora_that_draws_nothing_gets_no_figures(tmp_path):
    denoiser = random_lora(base=small_base())
    for parameter in denoiser.trainable_parameters():
        parameter.data = torch.full_like(parameter, 1e30)
    file = save_lora(denoiser, tmp_path, kohya=False)
    assert "values that are not finite" in evaluate_in_vain(file, tmp_path)


def test_no_mean_is_not_a_number():
    scores = {"base": {"style": [1.0, 3.0], "DINO": [0.5]}, "lora": {"style": [2.0], "DINO": [0.5, float("nan")]}}
    with pytest.raises(ValueError, match="No figures: DINO of lora cannot be measured"):
        means_of(scores)
    scores["lora"]["DINO"] = [0.25]
    assert means_of(scores) == {"base": {"style": 2.0, "DINO": 0.5}, "lora": {"style": 2.0, "DINO": 0.25}}


# ---------------------------------------------------------------------------------------------------------------------
# CLIP and DINO


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    return save_small_clip(tmp_path_factory.mktemp("clip"))


def test_clip_scores_are_the_librarys(clip_folder):
    images, prompts = noise_pictures(3), ["a cat", "gold circle", "a red car"]
    scores = clip_scores(clip_folder, images, prompts, images[:1])
    clip, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        output = clip(**processor(text=prompts, images=images, return_tensors="pt", padding=True))
        cosines = output.logits_per_image / clip.logit_scale.exp()
    assert scores["CLIP-T"] == pytest.approx(cosines.diagonal().tolist(), abs=1e-5)
    assert scores["CLIP-I"][0] == pytest.approx(1, abs=1e-5)
    assert max(scores["CLIP-I"][1:]) < 0.9999


def test_dino_scores_compare_with_all_training_images(tmp_path):
    save_small_dino(tmp_path)
    one, other, third = noise_pictures(3)
    (alone,) = dino_scores(str(tmp_path), [one], [one])["DINO"]
    (different,) = dino_scores(str(tmp_path), [one], [other])["DINO"]
    assert alone == pytest.approx(1, abs=1e-5) and different < 0.9999
    both = dino_scores(str(tmp_path), [one, third], [one, other])["DINO"]
    assert both[0] == pytest.approx((alone + different) / 2, abs=1e-5)


@pytest.mark.parametrize("scores", (lambda name: clip_scores(name, [], [], []), lambda name: dino_scores(name, [], [])))
def test_a_model_out_of_reach_says_what_to_do(tmp_path, scores):
    with pytest.raises(BaseModelError, match="(?s)Cannot load .*leave --clip and --dino away"):
        scores(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# The notebook


def outputs(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_runs_headless(lora):
    loras = {"STYLE_LORA": str(lora.parent), "SUBJECT_LORA": str(lora.parent)}
    shown = run_notebook(NOTEBOOK, MODEL_NAME=small_base(), NUM_INFERENCE_STEPS="2", **loras)
    assert sum("image/png" in data for data in shown) == 8


def test_the_notebook_is_committed_with_the_outputs_of_a_good_run():
    shown = str(outputs(nbformat.read(NOTEBOOK, 4)))
    assert shown.count("image/jpeg") == 8
    assert "site-packages" not in shown and "stderr" not in shown, "warnings name the machine's paths"
    style, subject = (
        [float(value) for value in found]
        for found in re.findall(
            r"base\W+([0-9.]+)\W+lora\W+([0-9.]+)\W+(?:against the base\W+[0-9.]+\W+)?true\W+([0-9.]+)", shown
        )
    )
    assert style[1] <= style[0] / 2, "the style distance falls by half"
    assert subject[1] >= (subject[0] + subject[2]) / 2, "the subject score closes half of the way to the true pictures"
