"""One folder, one training: another one in it stops, a finished one says so, and what changes on the way counts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import train_dreambooth_lora
import train_lora
from finetune.flags import Plan
from finetune.model.base import BaseModel
from finetune.model.cards import read_texts
from finetune.run import checkpoints
from finetune.run.settings import data_behind, fingerprint
from finetune.training_loop import Training
from lora.model import KOHYA_FILE
from processes import assert_same, call, losses
from small_bases import small_lora

RESULT = "pytorch_lora_weights.safetensors"
STEPS = 3
LATEST = ["--resume_from_checkpoint", "latest"]
UNKNOWN = "must not be reached"


def pictures(folder: Path, colors: list[str]) -> Path:
    """A folder of pictures with captions."""
    folder.mkdir()
    for color in colors:
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    lines = [json.dumps({"file_name": f"{color}.png", "text": f"a {color} wall"}) for color in colors]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "walls", ["red", "blue"])


@pytest.fixture(scope="module")
def style(data) -> Callable[..., tuple[int, str]]:
    """Trains a style LoRA on `data`, or on what the flags say."""

    def run(output_dir: Path, *flags: str) -> tuple[int, str]:
        common = ["--train_data_dir", str(data), "--max_train_steps", str(STEPS), "--output_dir", str(output_dir)]
        return call(train_lora.main, *small_lora(), *common, *flags)

    return run


@pytest.fixture(scope="module")
def finished(style, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished")
    status, said = style(output_dir, *LATEST)
    assert status == 0 and "The trained LoRA" in said and "nothing was trained" not in said, said
    return output_dir


def contents(output_dir: Path) -> dict[str, bytes]:
    """Everything that a run leaves but its logs."""
    files = (path for path in output_dir.rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(output_dir)): path.read_bytes() for path in files}


def no_work(monkeypatch) -> None:
    def load(*args):
        raise AssertionError(UNKNOWN)

    monkeypatch.setattr(BaseModel, "load", load)


OTHERS = {
    "resolution": (["--resolution", "72"], "--resolution was 64, is 72"),
    "schedule": (["--lr_scheduler", "linear"], "--lr_scheduler was constant, is linear"),
    "warm-up": (["--lr_warmup_steps", "1"], "--lr_warmup_steps was 0, is 1"),
    "loss weighting": (["--snr_gamma", "5"], "--snr_gamma was None, is 5.0"),
    "precision": (["--mixed_precision", "bf16"], "--mixed_precision was no, is bf16"),
    "text dropout": (["--proportion_empty_prompts", "0.5"], "--proportion_empty_prompts was 0.0, is 0.5"),
    "noise": (["--noise_offset", "0.1"], "--noise_offset was 0.0, is 0.1"),
    "rank": (["--rank", "4"], "--rank was 2, is 4"),
    "alpha": (["--alpha", "1"], "--alpha was 2.0, is 1.0"),
    "text encoder": (["--train_text_encoder"], "--train_text_encoder was False, is True"),
    "mirror images": (["--random_flip"], "--random_flip was False, is True"),
    "cuts": (["--random_crop"], "--random_crop was False, is True"),
    "seed": (["--seed", "7"], "--seed was 0, is 7"),
    "batch": (["--train_batch_size", "1"], "multiplied) was 2, is 1"),
    "fewer samples": (["--max_train_samples", "1"], "the data was 2 samples of"),
    "the finished run's rate": (["--learning_rate", "1e-3"], "--learning_rate was 0.0001, is 0.001"),
    "the finished run's clipping": (["--max_grad_norm", "2"], "--max_grad_norm was 1.0, is 2.0"),
}


@pytest.mark.parametrize("flags, words", OTHERS.values(), ids=list(OTHERS))
def test_another_training_in_a_used_folder_stops_before_any_work(style, finished, monkeypatch, flags, words):
    before = contents(finished)
    no_work(monkeypatch)
    status, said = style(finished, *LATEST, *flags)
    assert status == 1 and words in said, said
    assert "choose another --output_dir (of the scripts: OUTPUT_DIR), or remove" in said
    assert "The trained LoRA" not in said and contents(finished) == before


def test_other_pictures_are_named(style, finished, tmp_path, monkeypatch):
    no_work(monkeypatch)
    other = pictures(tmp_path / "fences", ["green", "gray", "gold"])
    status, said = style(finished, *LATEST, "--train_data_dir", str(other))
    assert status == 1 and f"walls, is 3 samples of {other}" in said


def test_the_same_folder_with_another_caption_is_another_training(style, tmp_path):
    own = pictures(tmp_path / "walls", ["red", "blue"])
    assert style(tmp_path / "run", "--train_data_dir", str(own), "--max_train_steps", "1")[0] == 0
    metadata = own / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a red wall", "a red fence"))
    status, said = style(tmp_path / "run", "--train_data_dir", str(own), "--max_train_steps", "1", *LATEST)
    assert status == 1 and "the data is still 2 samples of" in said and "but holds something else" in said


def test_a_base_is_known_by_its_weights_wherever_it_lies(tmp_path):
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / "base" / name).mkdir(parents=True)
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(bytes(3_000_000))
    (tmp_path / "base" / "README.md").write_text("what lies beside the parts")
    before = fingerprint(str(tmp_path / "base"))
    (tmp_path / "base" / "README.md").unlink()
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    assert fingerprint(str(tmp_path / "copy")) == before
    weights.write_bytes(b"\1" * 3_000_000)
    assert fingerprint(str(tmp_path / "base")) != before
    assert fingerprint("OWNER/NAME") == "OWNER/NAME"


def test_a_finished_run_trains_nothing_and_says_so(style, finished):
    before = contents(finished)
    status, said = style(finished, *LATEST)
    assert status == 0 and f"is finished, at step {STEPS}: nothing was trained" in said
    assert contents(finished) == before


def test_fewer_steps_than_there_are_is_said(style, finished, monkeypatch):
    no_work(monkeypatch)
    status, said = style(finished, *LATEST, "--max_train_steps", "2")
    assert status == 1 and f"is at step {STEPS} already, beyond --max_train_steps 2: nothing was trained" in said


def test_a_fresh_run_in_a_used_folder_stops(style, finished, monkeypatch):
    no_work(monkeypatch)
    for flags in ((), ("--seed", "7")):
        status, said = style(finished, *flags)
        assert status == 1 and "There is a run in" in said and "--resume_from_checkpoint latest, or" in said


def test_a_run_that_was_killed_before_it_saved_leaves_its_folder_free(style, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"finished": None, "result": None, "settings": {"rank": 64}}))
    status, said = style(tmp_path, *LATEST, "--max_train_steps", "1")
    assert status == 0, said


@pytest.mark.parametrize("content", ['{"artifacts": [], "status": "COMPLETED"}', "[1, 2]", "{", '{"finished": 2}'])
def test_a_file_of_another_program_with_the_name_of_ours_is_not_replaced(style, tmp_path, content, monkeypatch):
    no_work(monkeypatch)
    (tmp_path / "run.json").write_text(content)
    status, said = style(tmp_path, *LATEST)
    assert status == 1 and "run.json is no run of this program, and would be replaced: choose another" in said
    assert (tmp_path / "run.json").read_text() == content


def test_without_checkpoints_a_finished_run_is_known_too(style, tmp_path, monkeypatch):
    never = ["--checkpointing_steps", "0", *LATEST]
    status, said = style(tmp_path, *never)
    assert status == 0 and not list(tmp_path.glob("checkpoint-*")), said
    no_work(monkeypatch)
    status, said = style(tmp_path, *never)
    assert status == 0 and f"is finished, at step {STEPS}: nothing was trained" in said and RESULT in said
    status, said = style(tmp_path, *never, "--max_train_steps", "9")
    assert status == 1 and "kept no checkpoint to go on from to step 9" in said
    status, said = style(tmp_path, *never, "--rank", "4")
    assert status == 1 and "--rank was 2, is 4" in said
    (tmp_path / RESULT).unlink()
    status, said = style(tmp_path, *never)
    assert status == 1 and f"{RESULT} is gone" in said and "choose another --output_dir" in said


def test_a_finished_run_is_not_trained_again_from_an_older_checkpoint(style, tmp_path, monkeypatch):
    """As a run that was stopped leaves one, and then goes on without keeping more."""
    assert style(tmp_path, *LATEST, "--max_train_steps", "1", "--checkpointing_steps", "1")[0] == 0
    never = ["--checkpointing_steps", "0", *LATEST]
    assert style(tmp_path, *never)[0] == 0
    before = contents(tmp_path)
    assert any("checkpoint-1" in name for name in before) and not any(f"checkpoint-{STEPS}" in name for name in before)
    no_work(monkeypatch)
    status, said = style(tmp_path, *never)
    assert status == 0 and f"is finished, at step {STEPS}: nothing was trained" in said
    status, said = style(tmp_path, *never, "--max_train_steps", "2")
    assert status == 1 and f"is at step {STEPS} already, beyond --max_train_steps 2" in said
    assert contents(tmp_path) == before


def test_the_best_of_a_training_that_was_given_up_is_not_kept(style, tmp_path):
    """Killed before its first checkpoint, it leaves the folder free, but not what it had measured in it."""
    measured = ["--max_train_steps", "2", "--validation_split", "0.5", "--validation_loss_steps", "2"]
    assert style(tmp_path, *measured)[0] == 0
    best = tmp_path / "best" / "run.json"
    best.write_text(json.dumps({**json.loads(best.read_text()), "value": 0.0}))
    (tmp_path / "run.json").write_text(json.dumps({"finished": None, "result": None, "settings": {}}))
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    status, said = style(tmp_path, *measured, *LATEST)
    assert status == 0 and json.loads(best.read_text())["value"] > 0, said


def test_weights_that_are_not_finite_are_neither_kept_nor_finished(style, tmp_path, monkeypatch):
    """The last step's loss is that of the weights before it."""

    def spoil(self, parameters, *args):
        next(one for one in parameters if one.grad is not None).grad.fill_(float("inf"))

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spoil)
    status, said = style(tmp_path, "--max_train_steps", "1", "--checkpointing_steps", "1")
    assert status == 1 and "The weights after step 1 are not finite." in said, said
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / RESULT).exists()


def test_kohyas_file_is_not_left_behind_by_a_longer_training(style, tmp_path):
    common = ["--checkpointing_steps", "1", "--learning_rate", "1e-3", *LATEST]
    assert style(tmp_path, *common, "--max_train_steps", "1", "--also_save", "kohya")[0] == 0
    before = (tmp_path / KOHYA_FILE).read_bytes()
    assert style(tmp_path, *common, "--max_train_steps", "3")[0] == 0
    assert (tmp_path / KOHYA_FILE).read_bytes() != before
    assert read_texts(tmp_path / KOHYA_FILE)["ss_steps"] == read_texts(tmp_path / RESULT)["ss_steps"] == "3"


def test_kohyas_file_is_had_of_a_finished_run_that_kept_no_checkpoint(style, tmp_path, monkeypatch):
    never, also = ["--checkpointing_steps", "0", *LATEST], ["--also_save", "kohya"]
    assert style(tmp_path / "at once", *never, *also)[0] == 0
    assert style(tmp_path / "later", *never)[0] == 0
    assert not (tmp_path / "later" / KOHYA_FILE).exists()
    no_work(monkeypatch)
    status, said = style(tmp_path / "later", *never, *also)
    assert status == 0 and "nothing was trained" in said and str(tmp_path / "later" / KOHYA_FILE) in said
    at_once, later = (load_file(tmp_path / name / KOHYA_FILE) for name in ("at once", "later"))
    assert_same(at_once, later)
    (tmp_path / "later" / RESULT).unlink()
    status, said = style(tmp_path / "later", *never, *also)
    assert status == 1 and RESULT in said and "Traceback" not in said


def test_the_rate_of_a_resumed_run_is_the_one_that_is_asked_for(style, tmp_path):
    assert style(tmp_path, "--learning_rate", "1e-3")[0] == 0
    flags = [*LATEST, "--max_train_steps", "6", "--learning_rate", "1e-6", "--max_grad_norm", "0.5"]
    status, said = style(tmp_path, *flags)
    assert status == 0, said
    assert "Note: --learning_rate was 0.001, is 1e-06 from here on." in said
    assert "Note: --max_grad_norm was 1.0, is 0.5 from here on." in said
    moved = [
        (load_file(tmp_path / "checkpoint-6" / "lora" / "lora.safetensors")[name] - tensor).abs().max().item()
        for name, tensor in load_file(tmp_path / "checkpoint-3" / "lora" / "lora.safetensors").items()
    ]
    assert 0 < max(moved) < 1e-5  # three steps of AdamW, each about as large as its rate
    (group,) = torch.load(tmp_path / "checkpoint-6" / "optimizer.bin", weights_only=True)["param_groups"]
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert group["lr"] == group["initial_lr"] == state["settings"]["learning_rate"] == 1e-6
    assert state["settings"]["max_train_steps"] == 6


def test_a_schedule_goes_on_where_it_would_be(style, tmp_path):
    """Resumed in the middle, the same rates are logged and the same weights come out."""
    flags = ["--lr_scheduler", "cosine", "--lr_warmup_steps", "2", "--checkpointing_steps", "2"]
    assert style(tmp_path / "whole", *flags, "--max_train_steps", "4")[0] == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    status, said = style(tmp_path / "again", *flags, "--max_train_steps", "4", *LATEST)
    assert status == 0 and "Note" not in said, said
    whole, again = (load_file(tmp_path / name / RESULT) for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(tmp_path / "again")[-1] == losses(tmp_path / "whole")[-1]


def linear_training(folder: Path, steps: int, batch: int, batches: int) -> Training:
    """Of a linear layer, on eight pairs of numbers."""
    model = torch.nn.Linear(2, 1)
    return Training(
        Accelerator(cpu=True, gradient_accumulation_steps=batches), model,
        Plan(batch, steps, 0.1, "constant", 0, 1e9, False, False, 0, 1, None, 0),
        list(torch.arange(16.0).reshape(8, 2) / 16),
        lambda model, state, folder: (folder.mkdir(), torch.save(state, folder / "state"))[0],
        lambda model, folder: model.load_state_dict(torch.load(folder / "state", weights_only=True)),
        folder, "model", {},
    )  # fmt: skip


@pytest.mark.parametrize("batch, batches", [(1, 4), (2, 2)])
def test_a_step_that_is_cut_otherwise_when_the_run_goes_on_is_a_whole_step(tmp_path, monkeypatch, batch, batches):
    """Another GPU makes the same step of other batches: without noise, the same weights come of it."""
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", raising=False)  # set by what else ran here

    def weights(*plan: Any) -> torch.Tensor:
        torch.manual_seed(0)
        made = linear_training(*plan)
        made.resume("latest")
        made.run(lambda x: (made.model(x) - x.sum(1, keepdim=True)).square().mean(), lambda step: {}, 0)
        AcceleratorState._reset_state(reset_partial_state=True)
        return made.model.weight.detach().clone()

    whole = weights(tmp_path / "whole", 3, 4, 1)
    weights(tmp_path / "cut", 1, 4, 1)
    assert torch.allclose(weights(tmp_path / "cut", 3, batch, batches), whole, atol=1e-6)


def test_gradients_that_were_not_scaled_may_be_from_here_on(tmp_path):
    """A run in bf16 that goes on elsewhere in fp16; there is no GPU here, so its scaler is only put in its place."""
    before, after = (linear_training(tmp_path, 2, 1, 1) for _ in range(2))
    before.save_checkpoint()
    before.finish_checkpoint()
    scaler = after.accelerator.scaler = object()
    after.resume("latest")
    assert after.accelerator.scaler is scaler


def test_going_on_in_another_folder_is_told(style, finished, tmp_path):
    flags = ["--resume_from_checkpoint", str(finished / f"checkpoint-{STEPS}"), "--max_train_steps", "4"]
    status, said = style(tmp_path, *flags, "--snr_gamma", "5")
    assert status == 0, said
    assert "Note: --snr_gamma was None, is 5.0: the run goes on, but not as it would have." in said
    status, said = style(tmp_path / "8-bit", *flags, "--use_8bit_adam")
    assert status == 1 and "was trained with --use_8bit_adam no, and the optimiser's averages in it do not fit" in said
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["snr_gamma"] == 5.0


def test_other_pictures_of_the_class_are_another_training(data, tmp_path):
    common = [
        *small_lora(), "--instance_data_dir", str(data), "--instance_prompt", "a sks wall", "--with_prior_preservation",
        "--class_prompt", "a wall", "--class_data_dir", str(tmp_path / "class"), "--num_class_images", "2",
        "--max_train_steps", "1", "--output_dir", str(tmp_path / "run"), *LATEST,
    ]  # fmt: skip
    status, said = call(train_dreambooth_lora.main, *common)
    assert status == 0, said
    status, said = call(train_dreambooth_lora.main, *common, "--class_prompt", "a fence")
    assert status == 1 and "--class_prompt was a wall, is a fence" in said
    status, said = call(train_dreambooth_lora.main, *common, "--instance_prompt", "a sks fence")
    assert status == 1 and "--instance_prompt was a sks wall, is a sks fence" in said
    for path in (tmp_path / "class").glob("*.png"):
        Image.new("RGB", (64, 64), "pink").save(path)
    status, said = call(train_dreambooth_lora.main, *common)
    assert status == 1 and "the pictures of the class is still 2 samples of" in said


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints, results and scripts


def write_checkpoint(output_dir: Path, step: int, number: int) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoints.STATE_FILE).write_text(json.dumps({"step": step, "written": number, "settings": {}}))
    return folder


def test_the_newest_checkpoint_is_the_one_that_was_written_last(tmp_path):
    for step, number in ((6, 1), (12, 2), (2, 3), (4, 4)):
        newest = write_checkpoint(tmp_path, step, number)
        assert checkpoints.find_checkpoint(tmp_path, "latest") == newest
    checkpoints.remove_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert checkpoints.next_number(tmp_path) == 5


def test_going_back_to_an_older_checkpoint_keeps_what_is_written_from_there_on(style, tmp_path):
    assert style(tmp_path, "--checkpointing_steps", "1", "--checkpoints_total_limit", "3")[0] == 0
    back = ["--resume_from_checkpoint", "checkpoint-1", "--max_train_steps", "2", "--checkpoints_total_limit", "1"]
    status, said = style(tmp_path, *back)
    assert status == 0, said
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert "checkpoint-2, step 2 of 4" in style(tmp_path, *LATEST, "--max_train_steps", "4")[1]


def test_a_checkpoint_of_an_older_release_is_named(style, tmp_path):
    (write_checkpoint(tmp_path, 2, 1) / checkpoints.STATE_FILE).write_text('{"step": 2, "settings": {}}')
    status, said = style(tmp_path, *LATEST)
    assert status == 1 and "was written by an older release" in said


def test_what_a_model_has_seen_is_known_over_its_runs(tmp_path):
    first, second = ("4 pictures", "2 pictures")
    for name, settings in (
        ("one", {"data": {"identity": first}, "start": None}),
        ("two", {"data": {"identity": second}, "start": {"identity": "", "data": [first]}}),
        ("three", {"data": {"identity": second}, "start": {"identity": "", "data": None}}),
    ):
        (tmp_path / name / "controlnet").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps({"settings": settings}))
    assert data_behind(tmp_path / "one" / "controlnet") == [first]
    assert data_behind(tmp_path / "two" / "controlnet") == [first, second]
    assert data_behind(tmp_path / "three" / "controlnet") is None, "what it started from is not known"
    assert data_behind(tmp_path / "four" / "controlnet") is None


def test_files_of_models_have_the_rights_that_the_umask_gives(style, tmp_path):
    old = os.umask(0o027)
    try:
        assert style(tmp_path, "--max_train_steps", "1", "--also_save", "kohya")[0] == 0
    finally:
        os.umask(old)
    weights = list(tmp_path.rglob("*.safetensors"))
    assert len(weights) == 3 and {path.stat().st_mode & 0o777 for path in weights} == {0o640}
