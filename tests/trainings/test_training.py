"""Training end to end on a small base, with real processes that are really killed."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Sequence

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from diffusion.controlnet import ControlNetModel
from finetune.devices import is_gpu, pick_device
from finetune.flags import Plan
from finetune.model.cards import read_texts
from finetune.run import checkpoints
from finetune.training_loop import Training
from processes import ROOT, WRAPPERS, Program, assert_same, launch_two, losses, run_python, run_two, wait_for
from small_bases import small_base

# Small, float32 and without validation: a run takes a second.
PROGRAM = Program("task_1_controlnet", "train.py", [
    "--dataset_name", "rendered", "--resolution", "64",
    "--max_train_samples", "24", "--train_batch_size", "2", "--gradient_accumulation_steps", "2",
    "--conditioning_channels", "8", "8", "8", "8", "--learning_rate", "1e-3", "--lr_scheduler", "cosine",
    "--validation_steps", "0", "--proportion_empty_prompts", "0.5",
    "--new_layers_lr_ratio", "5",
], small_base)  # fmt: skip
train, train_here, start = PROGRAM.train, PROGRAM.train_here, PROGRAM.start
pytestmark = pytest.mark.usefixtures("one_thread")  # as the forked processes, whose weights are compared to the bit


def weights(output_dir: Path, folder: str = "controlnet") -> dict[str, torch.Tensor]:
    return load_file(output_dir / folder / "diffusion_pytorch_model.safetensors")


def load_config(output_dir: Path) -> dict:
    return json.loads((output_dir / "controlnet" / "config.json").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run of 12 steps that nothing interrupted."""
    output_dir = tmp_path_factory.mktemp("straight")
    train(output_dir, "--max_train_steps", "12", "--checkpointing_steps", "6")
    return output_dir


def test_a_run_leaves_a_controlnet_that_was_trained(straight):
    state = weights(straight)
    moved = [name for name, tensor in state.items() if name.startswith("controlnet_down_blocks") and tensor.any()]
    assert len(moved) == 2 * sum(1 for name in state if name.startswith("controlnet_down_blocks") and "weight" in name)
    assert losses(straight)
    assert sorted(path.name for path in straight.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-6"]


def test_the_rate_that_is_logged_is_the_one_that_the_step_was_made_with(straight):
    lines = [json.loads(line) for line in (straight / "stats.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    expected = {step: 1e-3 * (1 + math.cos(math.pi * (step - 1) / 12)) / 2 for step in logged}
    assert logged and logged == pytest.approx(expected)


def test_new_layers_have_a_rate_of_their_own_and_the_schedule_of_all(straight):
    """What the copy of the UNet lacks moves so many times as fast, at the first step and on the way down."""
    optimizer = torch.load(straight / "checkpoint-6" / "optimizer.bin", weights_only=True)
    rates = {group["lr_ratio"]: group["lr"] for group in optimizer["param_groups"]}
    half_way = 1e-3 * (1 + math.cos(math.pi * 6 / 12)) / 2
    assert rates == pytest.approx({1.0: half_way, 5.0: 5 * half_way})
    state = weights(straight)
    new = sum(name.startswith("controlnet_") for name in state)
    assert {g["lr_ratio"]: len(g["params"]) for g in optimizer["param_groups"]} == {1.0: len(state) - new, 5.0: new}


def test_a_run_that_goes_on_elsewhere_with_another_ratio_trains_by_that_one(straight, tmp_path):
    """And not by the one that the checkpoint's optimiser knows."""
    flags = ("--max_train_steps", "12", "--checkpointing_steps", "7", "--new_layers_lr_ratio", "2")
    said = train_here(tmp_path, *flags, "--resume_from_checkpoint", str(straight / "checkpoint-6"))
    assert "Note: --new_layers_lr_ratio was 5.0, is 2.0" in said
    optimizer = torch.load(tmp_path / "checkpoint-7" / "optimizer.bin", weights_only=True)
    usual, new = ((group["lr_ratio"], group["lr"]) for group in optimizer["param_groups"])
    assert usual == (1.0, pytest.approx(1e-3 * (1 + math.cos(math.pi * 7 / 12)) / 2))
    assert new == (2.0, pytest.approx(2 * usual[1]))


def test_going_on_elsewhere_with_another_embedding_says_which_it_was(straight, tmp_path):
    flags = ("--resume_from_checkpoint", str(straight / "checkpoint-6"), "--conditioning_channels", "4", "4", "4", "8")
    status, said = PROGRAM.run_here(tmp_path, "--max_train_steps", "12", *flags)
    assert status != 0 and "has --conditioning_channels 8 8 8 8." in said
    start = ("--controlnet_model_name_or_path", str(straight / "controlnet"), *flags[2:])
    said = train_here(tmp_path, "--max_train_steps", "1", *start)
    assert "--conditioning_channels counts for nothing, as the ControlNet to start from has 8 8 8 8." in said


def test_another_number_of_widths_than_the_base_takes_is_said_before_anything_is_encoded(straight, tmp_path):
    """By the flag, and by a ControlNet to start from, which here has one width too few."""
    narrow = ControlNetModel.from_config({**load_config(straight), "conditioning_embedding_out_channels": [8, 8, 8]})
    narrow.save_pretrained(tmp_path / "narrow")
    for flags, which in (
        (("--conditioning_channels", "8", "8"), "--conditioning_channels has 2 widths."),
        (("--controlnet_model_name_or_path", str(tmp_path / "narrow")), "to start from has 3 widths."),
    ):
        status, said = PROGRAM.run_here(tmp_path / "run", "--max_train_steps", "1", *flags)
        assert status != 0 and which in said and "one latent of 8 px, which takes 4." in said
        assert not (tmp_path / "run" / "cache").exists()


def test_a_run_of_a_release_without_the_ratio_does_not_go_on_with_one(tmp_path):
    earlier = tmp_path / "earlier"
    train_here(earlier, "--max_train_steps", "1", "--new_layers_lr_ratio", "1")
    for file in (earlier / "run.json", earlier / "checkpoint-1" / "trainer_state.json"):
        content = json.loads(file.read_text())
        del content["settings"]["new_layers_lr_ratio"]
        file.write_text(json.dumps(content))
    checkpoint = earlier / "checkpoint-1"
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    (group,) = optimizer["param_groups"]
    del group["lr_ratio"]
    torch.save(optimizer, checkpoint / "optimizer.bin")
    flags = ("--max_train_steps", "2", "--resume_from_checkpoint", str(checkpoint))
    status, said = PROGRAM.run_here(earlier, *flags)
    assert status != 0 and "--new_layers_lr_ratio was 1.0, is 5.0" in said
    status, said = PROGRAM.run_here(tmp_path / "elsewhere", *flags)
    assert status != 0 and "give --new_layers_lr_ratio 1, or begin with its weights" in said
    train_here(tmp_path / "elsewhere", *flags, "--new_layers_lr_ratio", "1")
    train_here(earlier, *flags, "--new_layers_lr_ratio", "1")


def test_killed_and_resumed_gives_the_same_weights_to_the_bit(straight, tmp_path):
    flags = ("--max_train_steps", "12", "--checkpointing_steps", "1")
    process = start(tmp_path, *flags)
    wait_for(tmp_path / "checkpoint-3", process)
    process.kill()
    process.wait()
    assert not (tmp_path / "controlnet").exists()
    output = train(tmp_path, *flags, "--resume_from_checkpoint", "latest").stdout
    assert "Resuming from" in output
    assert_same(weights(tmp_path), weights(straight))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_cleanly(straight, tmp_path, number):
    process = start(tmp_path, "--max_train_steps", "12", "--checkpointing_steps", "1")
    wait_for(tmp_path / "checkpoint-2", process)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert "go on from it with --resume_from_checkpoint latest" in output
    newest = max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert 2 < newest < 12
    train(tmp_path, "--max_train_steps", "12", "--resume_from_checkpoint", "latest")
    assert_same(weights(tmp_path), weights(straight))


def test_latest_never_picks_an_unfinished_checkpoint(straight, tmp_path):
    train_here(tmp_path, "--max_train_steps", "6", "--checkpointing_steps", "3")
    (tmp_path / ".checkpoint-9.tmp").mkdir()
    (tmp_path / "checkpoint-99").mkdir()  # a folder without the file that is written last
    said = train_here(
        tmp_path, "--max_train_steps", "9", "--checkpointing_steps", "3", "--resume_from_checkpoint", "latest"
    )
    assert "checkpoint-6, step 6 of 9" in said
    assert not (tmp_path / ".checkpoint-9.tmp").exists()


def test_a_finished_run_says_what_it_reuses(straight):
    before = weights(straight)
    output = train_here(straight, "--max_train_steps", "12", "--resume_from_checkpoint", "latest")
    assert "is finished, at step 12: nothing was trained" in output and "Reusing the encodings" in output
    assert_same(weights(straight), before)


def test_cached_and_uncached_training_are_the_same(straight, tmp_path):
    train_here(tmp_path, "--max_train_steps", "12", "--checkpointing_steps", "6", "--no_cache")
    # Encoded in other batches, the latents differ in the last bits, and Adam makes more of it with each step.
    assert losses(tmp_path)[0] == pytest.approx(losses(straight)[0], rel=1e-4)
    assert losses(tmp_path) == pytest.approx(losses(straight), rel=1e-3)
    for name, tensor in weights(tmp_path).items():
        assert torch.allclose(tensor, weights(straight)[name], atol=2e-3), name


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_checkpoint(tmp_path):
    flags = ("--max_train_steps", "400", "--checkpointing_steps", "1", "--learning_rate", "1e30")
    run = PROGRAM.run(tmp_path, *flags)
    assert run.returncode != 0
    assert "The loss of step" in run.stderr and "The last good checkpoint is" in run.stderr
    assert "Traceback" not in run.stderr


def test_pictures_that_are_not_finite_are_neither_shown_nor_scored(straight, tmp_path):
    """Guidance beyond all measure stands for weights beyond it: of what overflows the library makes black pictures."""
    flags = ("--validation_steps", "1", "--validation_guidance_scale", "1e38")
    said = train_here(tmp_path, "--max_train_steps", "2", *flags)
    assert "Step 1: The pictures have values that are not finite" in said and weights(tmp_path)
    assert not (tmp_path / "validation").exists()
    evaluation = run_python(
        "evaluate.py", "--controlnet", straight / "controlnet", "--base", small_base(), "--num_conditions", "1",
        "--num_inference_steps", "2", "--guidance_scale", "1e38", "--output_dir", tmp_path / "evaluation",
        folder=ROOT / "task_1_controlnet",
    )  # fmt: skip
    assert evaluation.returncode != 0 and "values that are not finite" in evaluation.stderr
    assert "Traceback" not in evaluation.stderr and not list(tmp_path.glob("evaluation/*.json"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(tmp_path):
    """A limit on the size of files stands for the full disk."""
    train(tmp_path, "--max_train_steps", "2", "--checkpointing_steps", "1")
    flags = ("--max_train_steps", "4", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest")
    limit, environment = [WRAPPERS / "small_files.py", str(400_000)], PROGRAM.environment
    run = run_python(*limit, *PROGRAM.arguments(tmp_path, flags), folder=PROGRAM.folder, environment=environment)
    assert run.returncode != 0
    assert "Cannot write" in run.stderr and "checkpoint-2" in run.stderr and "Traceback" not in run.stderr
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_disk_that_is_full_when_the_checkpoint_reaches_it_is_reported(tmp_path, monkeypatch):
    """In the background, after the step went on: the next checkpoint, or the run's end, says so."""
    plan = Plan(1, 2, 1e-3, "constant", 0, 1.0, False, False, 0, 1, None, 0)
    model = torch.nn.Linear(2, 1)
    training = Training(
        Accelerator(cpu=True), model, plan, [torch.ones(2)] * 4, lambda model, state, folder: folder.mkdir(),
        lambda model, folder: None, tmp_path, "model", {},
    )  # fmt: skip
    training.save_checkpoint()
    training.finish_checkpoint()

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush", full)
    training.step = 1
    training.save_checkpoint()
    with pytest.raises(checkpoints.CheckpointError, match="(?s)No space left.*last good checkpoint is .*checkpoint-0"):
        training.finish_checkpoint()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-0"]


def test_train_sh_without_a_gpu_says_what_to_do(tmp_path):
    if is_gpu(pick_device()):
        pytest.skip("this machine has a GPU")
    # What the script calls to train is called forked: Python itself would import PyTorch for seconds.
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh\n[ "$1" = -c ] && exec '{sys.executable}' "$@"\nprintf '%s\\n' "$@"\n""")
    python.chmod(0o755)
    environment = {**PROGRAM.environment, "OUTPUT_DIR": str(tmp_path / "run"), "PYTHON": str(python)}
    called = subprocess.run(
        ["sh", "train.sh"], cwd=PROGRAM.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    run = run_python(*called, folder=PROGRAM.folder, environment=environment, timeout=120)
    assert run.returncode != 0
    assert "needs a GPU" in run.stderr and "tiny_sd" in run.stderr and "Traceback" not in run.stderr


def test_a_model_that_is_nowhere_says_what_to_do(tmp_path):
    (tmp_path / "model").mkdir()
    run = PROGRAM.run(tmp_path, "--pretrained_model_name_or_path", str(tmp_path / "model"))
    assert run.returncode != 0
    assert "Cannot load" in run.stderr and "hf auth login" in run.stderr and "Traceback" not in run.stderr


TOGETHER = ("--max_train_steps", "3", "--checkpointing_steps", "2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """What two processes have to come to: a run of one that sees their batches as a whole."""
    output_dir = tmp_path_factory.mktemp("alone")
    train_here(output_dir, *TOGETHER, "--train_batch_size", "4")
    return output_dir


def started_by(*launcher: str, **environment: str) -> Program:
    """The training, started by a Python module that starts several processes, or by a script in its place."""
    program = Program("task_1_controlnet", "train.py", PROGRAM.flags, small_base)
    program.under = list(launcher)
    program.environment.update(environment)
    return program


def in_two_processes(output_dir: Path, *flags: str, under: Sequence[str] = (), **environment: str) -> str:
    """The training in two processes; all that they say."""
    arguments = (*under, *PROGRAM.arguments(output_dir, flags))
    return run_two(*arguments, folder=PROGRAM.folder, environment={**PROGRAM.environment, **environment})


def assert_trains_as_one(train: Callable, resume: Callable[..., str], output_dir: Path, alone: Path) -> None:
    """The same losses and files as one process, and a checkpoint to go on from to the same weights."""
    train(output_dir, *TOGETHER)
    assert losses(output_dir) == pytest.approx(losses(alone), rel=1e-4)
    straight, expected = weights(output_dir), weights(alone)
    assert straight.keys() == expected.keys() and load_config(output_dir) == load_config(alone)
    assert all(torch.allclose(straight[name], expected[name], atol=1e-4) for name in expected)
    resumed = resume(output_dir, *TOGETHER, "--resume_from_checkpoint", "checkpoint-2")
    assert resumed.count("Resuming from") == 1
    assert_same(weights(output_dir), straight)


MULTI_GPU = str(ROOT / "accelerate_configs" / "multi_gpu.yaml")
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--config_file", MULTI_GPU, "--num_processes", "2"],
}
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU each process has one")
joins_on_cpu = hasattr(torch.cpu, "set_device")


needs_to_join = pytest.mark.skipif(not joins_on_cpu, reason="accelerate's processes on a CPU need PyTorch 2.2 or later")


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("torchrun")
    launch_two(LAUNCHERS["torchrun"], PROGRAM, output_dir, *TOGETHER)
    return output_dir


@without_gpu
@needs_to_join
def test_two_processes_train_together_and_resume(tmp_path, alone, by_torchrun):
    """As they are started on GPUs, on one CPU."""
    trained = shutil.copytree(by_torchrun, tmp_path / "run")

    def has_trained(*flags: object) -> None:
        """By torchrun, once for this test and the next."""

    assert_trains_as_one(has_trained, in_two_processes, trained, alone)
    state = json.loads((trained / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["settings"]["samples_per_step"] == 8


@without_gpu
@needs_to_join
def test_by_accelerate_two_processes_do_what_they_do_by_torchrun(tmp_path, by_torchrun):
    """To the bit, and so does what goes on from their checkpoint."""
    launch_two(LAUNCHERS["accelerate"], PROGRAM, tmp_path, *TOGETHER)
    assert losses(tmp_path) == losses(by_torchrun)
    one, other = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "checkpoint-2", by_torchrun / "checkpoint-2")
    )
    different = {str(name) for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert not different, different
    assert_same(weights(tmp_path), weights(by_torchrun))


@without_gpu
@pytest.mark.skipif(joins_on_cpu, reason="where PyTorch can, they train together")
def test_two_processes_that_cannot_join_stop_with_a_sentence(tmp_path):
    run = started_by(*LAUNCHERS["torchrun"]).run(tmp_path, *TOGETHER)
    assert run.returncode != 0 and "need PyTorch 2.2 or later" in run.stderr
    assert not (tmp_path / "controlnet").exists()


@pytest.mark.skipif(sys.version_info < (3, 9), reason="FSDP 2 needs accelerate 1.6, which needs Python 3.9")
def test_a_model_that_is_spread_over_two_processes_trains_as_a_whole_one(tmp_path, alone):
    """FSDP on one CPU."""
    spread = partial(in_two_processes, under=[str(WRAPPERS / "fsdp_on_cpu.py")], ACCELERATE_USE_CPU="true")
    assert_trains_as_one(spread, spread, tmp_path, alone)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed")
def test_deepspeed_trains_as_one_process_does(tmp_path, alone):
    """By the configuration as it is, ZeRO-2 with two processes, but on one CPU and in float32."""
    config = ROOT / "accelerate_configs" / "deepspeed_zero2.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", str(WRAPPERS / "deepspeed_on_cpu.py")]
    two = started_by(*launcher, DS_ACCELERATOR="cpu", ACCELERATE_TORCH_DEVICE="cpu", OMP_NUM_THREADS="1")
    assert_trains_as_one(two.train, lambda *flags: two.train(*flags).stdout, tmp_path, alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_on_cuda(tmp_path, precision):
    train(tmp_path, "--max_train_steps", "4", "--mixed_precision", precision)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_checkpoints_hold_a_controlnet_that_loads(straight):
    from diffusion.controlnet import ControlNetModel

    loaded = ControlNetModel.from_pretrained(straight / "checkpoint-12" / "controlnet")
    assert_same(loaded.state_dict(), weights(straight))
    assert json.loads((straight / "checkpoint-12" / "trainer_state.json").read_text())["step"] == 12


def test_the_best_controlnet_says_of_itself_what_the_last_one_does(tmp_path):
    train_here(tmp_path, "--max_train_steps", "1", "--validation_split", "0.1")
    files = (tmp_path / folder / "controlnet" / "diffusion_pytorch_model.safetensors" for folder in ("best", ""))
    best, last = map(read_texts, files)
    assert best == last and best["ss_steps"] == "1"
