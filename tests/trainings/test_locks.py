"""One folder, one training at a time; and the processes of one training stop together."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from finetune.run import locks
from processes import ROOT, Forked, Program, wait_for
from small_bases import small_base

SMALL = ["--resolution", "64", "--train_batch_size", "2", "--checkpointing_steps", "1"]
LATEST = ["--resume_from_checkpoint", "latest"]
CONTROLNET = [
    *SMALL, "--dataset_name", "rendered", "--max_train_samples", "4", "--conditioning_channels", "8", "8", "8", "8",
    "--gradient_accumulation_steps", "1", "--validation_steps", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def walls(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("walls")
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "red.png", "text": "a red wall"}))
    return folder


TRAINING = Program("task_1_controlnet", "train.py", CONTROLNET, small_base)
PROGRAMS = {
    "controlnet": ("task_1_controlnet", "train.py", CONTROLNET),
    "style": ("task_2_lora", "train_lora.py", [*SMALL, "--train_data_dir", "WALLS"]),
    "dreambooth": (
        "task_2_lora", "train_dreambooth_lora.py",
        [*SMALL, "--instance_data_dir", "WALLS", "--instance_prompt", "a sks wall"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("folder, script, flags", PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_second_training_waits_its_turn_and_a_killed_one_holds_no_place(folder, script, flags, walls, tmp_path):
    flags = [str(walls) if flag == "WALLS" else flag for flag in flags]
    program = Program(folder, script, flags, small_base)
    # Its steps are short: the checkpoint that is waited for must not have gone again.
    long = ["--max_train_steps", "100000", "--dataloader_num_workers", "2", "--checkpoints_total_limit", "1000"]
    first = program.start(tmp_path, *long)
    try:
        for sign in (".lock", "checkpoint-2"):  # as soon as it has begun, and in its midst
            wait_for(tmp_path / sign, first)
            status, said = program.run_here(tmp_path, *long, *LATEST)
            assert status == 1, said
            assert f"Another training is running in {tmp_path} (process {first.pid}): wait for it, or choose" in said
            assert "choose another --output_dir" in said and "remove" not in said
        assert first.poll() is None
    finally:
        first.kill()  # its workers live on for some seconds
        first.wait()
    step = max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    again = ["--max_train_steps", str(step + 1), *LATEST]
    assert "Resuming from" in program.train_here(tmp_path, *again)
    assert "nothing was trained" in program.train_here(tmp_path, *again)


def test_where_there_are_no_locks_it_is_said_and_trained(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    said = TRAINING.train_here(tmp_path, "--max_train_steps", "1")
    assert said.count("has no locks") == 1 and "The trained ControlNet" in said, said


def test_another_training_in_a_finished_ones_folder_names_the_folder(tmp_path):
    folder = tmp_path / "run"
    one_step = ["--max_train_steps", "1", *LATEST]
    TRAINING.train_here(folder, *one_step)
    for flags in (["--seed", "7"], ["--resolution", "72"]):
        status, said = TRAINING.run_here(folder, *one_step, *flags)
        assert status == 1 and f"or remove {folder}." in said, said
    assert "nothing was trained" in TRAINING.train_here(folder, *one_step)


def start_loading(output_dir: Path, *flags: str) -> subprocess.Popen | Forked:
    """A training whose data others load, all of them in a group of their own."""
    program = Program("task_1_controlnet", "train.py", CONTROLNET, small_base)
    program.under = [str(ROOT / "tests" / "support" / "wrappers" / "own_group.py")]
    return program.start(output_dir, "--max_train_steps", "400", "--dataloader_num_workers", "2", *flags)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes to send a signal to")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_too(tmp_path, number):
    """As Ctrl-C in a terminal and a cluster's SIGTERM come: also to those that load what the step still wants."""
    process = start_loading(tmp_path, "--gradient_accumulation_steps", "8")
    wait_for(tmp_path / "checkpoint-2", process)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert "go on from it with --resume_from_checkpoint latest" in output


def test_a_training_that_fails_does_not_wait_for_those_that_load_its_data(tmp_path):
    process = start_loading(tmp_path, "--learning_rate", "1e30")
    assert "The loss of step" in process.communicate(timeout=60)[0].decode() and process.returncode == 1
