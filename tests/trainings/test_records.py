"""What a training leaves beside its result: figures, options, a held-out loss that is not trained on, and the best."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

import train_dreambooth_lora
import train_lora
from examples import load_test_data
from fill50k import load_data
from finetune.data.cache import held_out_from
from finetune.model.cards import read_texts
from finetune.objective import HeldOut, diffusion_loss, split_off, timestep_weights
from finetune.run.records import Best, Record, commit, read_stats
from metrics import chance, not_aligned_yet
from pictures import CAPTIONS_COUNT, CaptionedImages, SubjectImages
from processes import assert_same, call, scalars
from small_bases import small_lora

LATEST = ["--resume_from_checkpoint", "latest"]
RESULT = "pytorch_lora_weights.safetensors"
COLORS = ["red", "blue", "green", "gold"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for color in COLORS:
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    rows = [{"file_name": f"{color}.png", "text": text} for color in COLORS for text in (f"a {color} wall", color)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def style(data) -> Callable[..., str]:
    def run(output_dir: Path, *flags: str) -> str:
        common = ["--train_data_dir", str(data), "--max_train_steps", "4", "--checkpointing_steps", "2"]
        status, said = call(train_lora.main, *small_lora(), *common, "--output_dir", str(output_dir), *flags)
        assert status == 0, said
        return said

    return run


# At this rate the loss goes up and down: the best is neither the first nor the last, with the course's PyTorch, too.
HELD_OUT = ["--validation_split", "0.25", "--learning_rate", "6e-1"]


@pytest.fixture(scope="module")
def measured(style, tmp_path_factory) -> tuple[Path, str]:
    output_dir = tmp_path_factory.mktemp("measured")
    return output_dir, style(output_dir, *HELD_OUT, "--validation_loss_steps", "1")


def test_every_figure_is_in_the_stats_and_in_the_curves(measured):
    output_dir, said = measured
    lines = read_stats(output_dir)
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert len(losses) == 4 and losses == pytest.approx(scalars(output_dir, "validation/loss"), rel=1e-6)
    assert f"Step 4: held-out loss {losses[-1]:.5f}" in said
    figures = [line for line in lines if "loss" in line]
    assert [line["step"] for line in figures] == [2, 4]
    for line in figures:
        assert line["images_per_second"] > 0 and line["peak_memory_gib"] > 0.1 and line["seconds"] > 0
    assert figures[0]["seconds_left"] > 0 == figures[1]["seconds_left"]
    assert "4 steps of 2 samples in" in said and "img/s=" in said and "GiB=" in said


def test_the_options_say_with_what_it_was_trained(measured):
    output_dir, said = measured
    kept = json.loads((output_dir / "training_options.json").read_text())
    assert kept["options"]["rank"] == 2 and kept["options"]["output_dir"] == str(output_dir)
    assert kept["data"]["words"].startswith("6 samples of") and len(kept["data"]["identity"]) > 32
    assert kept["versions"]["torch"] == torch.__version__.split("+")[0]
    assert kept["commit"] == commit() and kept["step"] == 4 and kept["seconds"] > 0
    assert "Precision: float32, as --mixed_precision says." in said and "Trained: 0.0" in said


def test_the_best_by_the_held_out_loss_is_kept(measured):
    output_dir, said = measured
    losses = {line["step"]: line["validation/loss"] for line in read_stats(output_dir) if "validation/loss" in line}
    best = json.loads((output_dir / "best" / "run.json").read_text())
    assert best["value"] == min(losses.values()) == losses[best["finished"]]
    assert 1 < best["finished"] < 4, "else the first or the newest would do"
    assert f"The best by validation/loss, {best['value']:.5f} at step {best['finished']}" in said
    assert load_file(output_dir / "best" / RESULT).keys() == load_file(output_dir / RESULT).keys()
    texts, last = read_texts(output_dir / "best" / RESULT), read_texts(output_dir / RESULT)
    assert texts.keys() == last.keys() and texts["ss_steps"] == str(best["finished"])


def test_measuring_changes_nothing_and_a_resumed_run_measures_the_same(style, measured, tmp_path):
    straight, _ = measured
    style(tmp_path / "quiet", *HELD_OUT, "--validation_loss_steps", "0", "--report_to", "none")
    assert_same(load_file(tmp_path / "quiet" / RESULT), load_file(straight / RESULT))
    assert not (tmp_path / "quiet" / "best").exists() and not (tmp_path / "quiet" / "logs").exists()
    again = tmp_path / "again"
    shutil.copytree(straight, again, ignore=shutil.ignore_patterns("checkpoint-4", "cache"))
    (again / RESULT).unlink()
    run = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**run, "finished": None, "result": None}))
    said = style(again, *HELD_OUT, *LATEST, "--validation_loss_steps", "1")
    assert "step 2 of 4" in said
    for name in ("step", "loss", "validation/loss"):
        assert [line.get(name) for line in read_stats(again)] == [line.get(name) for line in read_stats(straight)]
    assert read_stats(again)[-2]["seconds"] > read_stats(straight)[1]["seconds"], "the time before counts too"
    assert_same(load_file(again / "best" / RESULT), load_file(straight / "best" / RESULT))


def test_another_split_is_another_training_and_how_it_is_told_is_not(style, measured, data):
    output_dir, _ = measured
    common = ["--train_data_dir", str(data), "--max_train_steps", "4", "--output_dir", str(output_dir), *LATEST]
    status, said = call(train_lora.main, *small_lora(), *common, *HELD_OUT[2:])
    assert status == 1 and "--validation_split was 0.25, is None" in said
    said = style(output_dir, *HELD_OUT, *LATEST, "--report_to", "none", "--validation_loss_steps", "7")
    assert "nothing was trained" in said


def test_held_out_pictures_are_not_trained_on_and_always_the_same(data):
    captioned = CaptionedImages(None, str(data), "image", "text")
    for _ in range(2):
        rest, held_out = split_off(captioned, 0.25)
        one, other = (
            {text.split()[-2:][0] if " " in text else text for text in part.texts()} for part in (rest, held_out)
        )
        assert (len(rest), len(held_out)) == (6, 2), "both captions of a picture are on one side"
        assert not one & other and one | other == set(COLORS)
    rest, held_out = split_off(SubjectImages(data, "a sks wall", with_captions=True), 0.01)
    assert len(held_out) == 1 + 2 * CAPTIONS_COUNT and len({held_out.data.names[i] for i in held_out.indices}) == 1
    with pytest.raises(ValueError, match="of 1 pictures leaves none"):
        split_off(CaptionedImages(None, str(data), "image", "text", max_samples=1), 0.5)


def test_a_folder_may_be_held_out_but_not_the_one_that_is_trained_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.training_loop.WORTH_COUNTING", 1)
    common = [
        *small_lora(), "--instance_data_dir", str(data), "--instance_prompt", "a sks wall", "--max_train_steps", "1",
    ]  # fmt: skip
    flags = ["--output_dir", str(tmp_path / "run"), "--validation_data_dir"]
    status, said = call(train_dreambooth_lora.main, *common, *flags, str(data))
    assert status == 1 and "holds what is trained on: 20 of its 20 samples" in said
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "other.png")
    status, said = call(train_dreambooth_lora.main, *common, *flags, str(tmp_path))
    assert status == 0 and "Step 1: held-out loss" in said, said
    assert re.search(r"parameters \(lora\); work: [\d.,]+ GFLOP a step, forward and backward, of each process", said)
    status, said = call(train_dreambooth_lora.main, *common, *flags, str(tmp_path), "--validation_split", "0.5")
    assert status == 2 and "give one of them" in said


@pytest.mark.parametrize("case", ["some of it", "a part in an archive", "another caption"])
def test_no_picture_that_is_trained_on_is_held_out_from_a_folder(data, tmp_path, case):
    captioned = CaptionedImages(None, str(data), "image", "text", 4 if case == "some of it" else None)
    place = data if case == "some of it" else tmp_path / "other"
    if case != "some of it":
        place.mkdir()
        Image.new("RGB", (64, 64), "pink").save(place / "pink.png")
        shutil.copy(data / "blue.png", place / "sky.png")
        rows = [{"file_name": name, "text": "a new caption"} for name in ("pink.png", "sky.png")]
        (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if case == "a part in an archive":
        place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", place))
    flags = Namespace(validation_split=None, validation_data_dir=str(place))
    count = "4 of its 8" if case == "some of it" else "1 of its 2"
    with pytest.raises(ValueError, match=f"holds what is trained on: {count} samples"):
        held_out_from(flags, captioned, lambda folder: CaptionedImages(None, folder, "image", "text"))


def test_noise_and_timesteps_are_fixed_and_lie_as_those_of_training():
    held_out = HeldOut([{"latents": torch.zeros(4, 8, 8)} for _ in range(3)], "three")
    scheduler = DDPMScheduler()
    assert len(held_out) == 33, "three pictures, eleven times"
    seen = []

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append((noisy, timesteps))
        return torch.zeros_like(noisy)

    for size in (33, 11):
        for start in range(0, 33, size):
            batch = torch.utils.data.default_collate([held_out[i] for i in range(start, start + size)])
            diffusion_loss(predict, scheduler, batch["latents"], snr_gamma=1.0, held_out=batch)
    noise, timesteps = seen[0]
    assert torch.equal(noise, torch.cat([part for part, _ in seen[1:]])), "whatever the size of a batch"
    assert torch.equal(timesteps, torch.cat([part for _, part in seen[1:]]))
    weights = timestep_weights(scheduler, 1.0)
    expected = (weights * torch.arange(1000)).sum() / weights.sum()
    assert timesteps.float().mean().item() == pytest.approx(expected.item(), rel=0.02)


def test_a_best_is_beaten_by_what_is_better_only(tmp_path):
    def save(folder: Path) -> str:
        (folder / "model").write_text("weights")
        return "model"

    loss, iou = Best(tmp_path, "validation/loss", "data"), Best(tmp_path / "iou", "mean_iou", None)
    for best, worse, value, better in ((loss, 0.3, 0.2, 0.1), (iou, 0.1, 0.2, 0.3)):
        assert best.beaten_by({best.by: value}) and not best.beaten_by({"other": value})
        best.keep({best.by: value}, 5, {}, save)
        assert [best.beaten_by({best.by: one}) for one in (worse, value, better)] == [False, False, True]
        Best.forget_later(best.folder.parent, 5)
        assert not best.beaten_by({best.by: worse})
        Best.forget_later(best.folder.parent, 4)  # the run went back to before it
        assert best.beaten_by({best.by: worse})
        assert not best.beaten_by({best.by: math.nan}), "nothing would ever beat it"
        best.keep({best.by: value}, 5, {}, save)
    assert Best(tmp_path, "validation/loss", "other data").beaten_by({"validation/loss": 9.0})
    assert Best.in_words(tmp_path) == [f"The best by validation/loss, 0.20000 at step 5: {tmp_path / 'best'}"]


def test_pauses_are_no_training_and_half_a_line_is_none(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("finetune.run.records.time.monotonic", lambda: now[0])
    (tmp_path / "stats.jsonl").write_text('{"step": 2, "seconds": 7.0}\n{"step": 4, "seconds": 9.0}\n{"step": 6, "se')
    record = Record(tmp_path, 8, 10, torch.device("cpu"), {}, True)
    record.begin(2)
    now[0] += 2
    with record.pause():
        now[0] += 5
    figures = record.figures(4)
    assert figures["images_per_second"] == pytest.approx(8) and figures["seconds"] == pytest.approx(14)
    assert figures["seconds_left"] == pytest.approx(6 * 7 / 2), "drawing will be done again"
    assert [line["step"] for line in read_stats(tmp_path)] == [2]


def test_what_follows_no_condition_is_said_to_follow_none():
    conditions, _ = load_test_data()
    by_chance = chance(conditions)
    assert 0.05 < by_chance < 0.4
    words = not_aligned_yet(0.17, by_chance, 8000)
    assert "8,000 samples were seen" in words and "16,000 to 24,000 samples" in words and "\n" not in words
    assert not_aligned_yet(0.9, by_chance, 8000) is None


def test_a_folder_to_hold_out_that_is_not_there_is_not_called_by_another_flags_name(data, tmp_path):
    flags = ["--train_data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--validation_data_dir", "./nowhere"]
    status, said = call(train_lora.main, *small_lora(), *flags)
    assert status == 1 and "no folder or zip archive ./nowhere: correct its name" in said
    assert "--train_data_dir" not in said
    with pytest.raises(FileNotFoundError, match="no folder or zip archive ./nowhere: correct its name$"):
        load_data("./nowhere")  # as of --edges, --validation_data_dir and --dataset_name


def test_an_optimiser_that_is_not_installed_is_named_before_anything_is_encoded(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    flags = ["--train_data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--use_8bit_adam"]
    status, said = call(train_lora.main, *small_lora(), *flags)
    assert status == 1 and "--use_8bit_adam needs bitsandbytes: pip install bitsandbytes" in said
    assert not (tmp_path / "run" / "cache").exists()


def test_a_tracker_that_is_not_installed_is_named(data, tmp_path):
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    flags = ["--train_data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--report_to", "wandb"]
    status, said = call(train_lora.main, *small_lora(), *flags)
    assert status == 1 and "--report_to wandb needs wandb: pip install wandb" in said
