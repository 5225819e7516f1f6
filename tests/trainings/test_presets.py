"""Presets: what could be typed, in one word; what is typed beside it counts."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
import train_dreambooth_lora
import train_lora
from finetune import devices
from finetune.estimate import Rehearsal, can_simulate, count_flops, simulation, step_peaks
from finetune.fit import BESIDE, GIB, Cut, fastest
from finetune.presets import PRESETS
from finetune.run.settings import differences, settings_of
from processes import BASE, ROOT, call

PROGRAMS = {
    "train.py": (train.parse_args, "task_1_controlnet"),
    "train_lora.py": (train_lora.parse_args, "task_2_lora"),
    "train_dreambooth_lora.py": (train_dreambooth_lora.parse_args, "task_2_lora"),
}


def parsed(monkeypatch, program: str, *words: str):
    parse, folder = PROGRAMS[program]
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(sys, "argv", [program, *words])
    return parse()


def typed_out(name: str) -> list[str]:
    words = []
    for flag, value in PRESETS[name].options.items():
        if value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{flag}", *map(str, values)]
    return words


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_could_be_typed(name, monkeypatch):
    program = PRESETS[name].program
    preset, typed = parsed(monkeypatch, program, "--preset", name), parsed(monkeypatch, program, *typed_out(name))
    assert {**vars(preset), "preset": None} == vars(typed)
    one, other = settings_of(preset), settings_of(typed)
    assert not differences(one, other, True) + differences(one, other, False), "one run goes on with the other"


def test_a_presets_paths_are_found_from_anywhere(monkeypatch):
    parse, folder = PROGRAMS["train_dreambooth_lora.py"]
    paths = ("pretrained_model_name_or_path", "instance_data_dir", "class_data_dir", "output_dir")
    in_its_folder = parsed(monkeypatch, "train_dreambooth_lora.py", "--preset", "dreambooth-tiny")
    for start in (ROOT, ROOT / "docs"):
        monkeypatch.chdir(start)
        program = os.path.relpath(ROOT / folder / "train_dreambooth_lora.py")
        monkeypatch.setattr(sys, "argv", [program, "--preset", "dreambooth-tiny", "--validation_prompt", "../a"])
        args = parse()
        for name in paths:
            assert (start / getattr(args, name)).resolve() == (ROOT / folder / getattr(in_its_folder, name)).resolve()
        assert args.validation_prompt == "../a"


def test_what_is_typed_beside_a_preset_counts_wherever_it_stands(monkeypatch):
    args = parsed(monkeypatch, "train.py", "--max_train_steps", "7", "--preset", "canny-tiny",
                  "--snr_gamma", "none")  # fmt: skip
    assert (args.max_train_steps, args.snr_gamma) == (7, None)
    assert args.conditioning_channels == [8, 16, 32, 64] and args.output_dir == Path("../runs/controlnet-canny")
    args = parsed(monkeypatch, "train.py", "--preset", "sd14", "--gradient_checkpointing", "no")
    assert args.gradient_checkpointing is False
    args = parsed(monkeypatch, "train_lora.py", "--preset", "style-tiny", "--dataset_name=OWNER/NAME")
    assert (args.dataset_name, args.train_data_dir) == ("OWNER/NAME", None)


@pytest.mark.parametrize("program, flag", [
    ("train.py", "output_dir"), ("train.py", "controlnet_model_name_or_path"), ("train.py", "resume_from_checkpoint"),
    ("train_lora.py", "pretrained_model_name_or_path"), ("train_lora.py", "train_data_dir"),
    ("train_lora.py", "validation_data_dir"), ("train_dreambooth_lora.py", "instance_data_dir"),
    ("train_dreambooth_lora.py", "class_data_dir")])  # fmt: skip
def test_a_home_behind_an_equals_sign_is_the_home(program, flag, monkeypatch):
    # Shells replace ~ at the beginning of a word only: `--output_dir=~/runs` would make a folder called ~ here.
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    preset = next(name for name, preset in PRESETS.items() if preset.program == program)
    args = parsed(monkeypatch, program, "--preset", preset, f"--{flag}=~/folder")
    assert Path(getattr(args, flag)) == Path("/home/somebody/folder")


def test_a_preset_of_another_program_or_a_wrong_switch_is_refused_in_a_sentence(monkeypatch, capsys):
    for words, said in (
        (["--preset", "style-tiny"], "invalid choice: 'style-tiny' (choose from 'demo'"),
        (["--preset", "sd14", "--compile", "maybe"], "argument --compile: must be yes or no, not 'maybe'"),
    ):
        with pytest.raises(SystemExit) as end:
            parsed(monkeypatch, "train.py", *words)
        message = capsys.readouterr().err.splitlines()[-1].replace("choose from demo", "choose from 'demo'")
        assert end.value.code == 2 and said in message


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_presets_and_says_what_one_sets(program, monkeypatch, capsys):
    names = [name for name, preset in PRESETS.items() if preset.program == program]
    with pytest.raises(SystemExit):
        parsed(monkeypatch, program, "--preset", names[0], "--help")
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] and PRESETS[name].about in line for line in lines) for name in names)
    steps = PRESETS[names[0]].options["max_train_steps"]
    assert f"--max_train_steps MAX_TRAIN_STEPS optimisation steps (default: {steps})" in " ".join(
        " ".join(lines).split()
    )


def test_scripts_name_presets_and_pass_on_what_is_given(tmp_path):
    """With a program in Python's place that says what it was called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -c ] && printf "%s|" "$@"\n')
    python.chmod(0o755)
    given = {"PYTHON": str(python), "OUTPUT_DIR": "my run"}
    for script, more, expected in (
        ("task_1_controlnet/train.sh", {}, "train.py|--preset|sd14|--output_dir|my run|"),
        ("task_1_controlnet/train_canny.sh", {}, "train.py|--preset|canny-sd14|--output_dir|my run|"),
        ("task_1_controlnet/train_canny.sh", {"MODEL_DIR": "../tiny_sd"},
         "train.py|--preset|canny-tiny|--pretrained_model_name_or_path|../tiny_sd|--output_dir|my run|"),
        ("task_2_lora/scripts/train_lora.sh", {}, "train_lora.py|--preset|style-hub|--output_dir|my run|"),
        ("task_2_lora/scripts/train_lora_custom.sh", {"MODEL_NAME": "../tiny_sd", "TRAIN_DATA_DIR": "a b"},
         "train_lora.py|--preset|style-tiny|--pretrained_model_name_or_path|../tiny_sd|--train_data_dir|a b|"),
        ("task_2_lora/scripts/train_dreambooth_lora.sh", {},
         "train_dreambooth_lora.py|--preset|dreambooth-sd|--class_data_dir|my run/class-images|"),
    ):  # fmt: skip
        environment = {**os.environ, **given, **more}
        run = subprocess.run(
            ["sh", str(ROOT / script), "--seed", "3"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        assert run.stdout.startswith(expected)
        assert run.stdout.endswith("--resume_from_checkpoint|latest|--seed|3|"), "so that what is typed comes last"


def test_a_copy_by_deepcopy_is_as_much_to_train_as_one_by_state_dicts(tmp_path, monkeypatch):
    """Both are right in TODO (2), and the first takes over whether weights are frozen."""
    from diffusion.controlnet import ControlNetModel
    from diffusion.denoiser import rehearsal

    def trained() -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in rehearsal(args, torch.device("cpu"))("no").parameters)

    def by_deepcopy(unet, *widths):
        controlnet = from_unet(unet, *widths)
        controlnet.down_blocks = copy.deepcopy(unet.down_blocks)
        return controlnet

    monkeypatch.chdir(ROOT / "task_1_controlnet")
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "demo", "--output_dir", str(tmp_path)])
    args, from_unet = train.parse_args(), ControlNetModel.from_unet
    before = trained()
    monkeypatch.setattr(ControlNetModel, "from_unet", by_deepcopy)
    assert trained() == before > 10**6


def test_a_dry_run_says_what_a_training_would_be_and_does_nothing(tmp_path, monkeypatch):
    """Figures that can be had otherwise are those of the models themselves."""
    from diffusion.controlnet import ControlNetModel
    from diffusion.unets.unet_2d_condition import UNet2DConditionModel

    monkeypatch.chdir(ROOT / "task_1_controlnet")
    flags = ["--preset", "demo", "--dry_run", "--output_dir", str(tmp_path / "run"), "--train_batch_size", "2"]
    status, said = call(train.main, *flags, "--gradient_accumulation_steps", "3", "--max_train_samples", "13")
    assert status == 0, said
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    trained = ControlNetModel.from_unet(unet, [8, 16, 32, 64]).num_parameters()
    words = f"Trained: {trained / 1e6:.2f} M parameters, beside {unet.num_parameters() / 1e6:.2f} M that are frozen"
    assert words in said
    assert "Steps: 400, each of 6 samples; 13 samples are an epoch of 3 steps, 184.6 epochs in all" in said
    assert re.search(r"learning_rate +0.001\n", said) and re.search(r"preset +demo\n", said)
    # Weights alone are 4 bytes a parameter, and AdamW's averages are twice those of what is trained.
    parts = [float(number) for number in re.findall(r"[:+] ([\d.]+) [gwo]", said.split("Memory")[1])]
    expected = [number / 2**30 for number in (4 * (trained + unet.num_parameters()), 8 * trained)]
    assert parts[0] == pytest.approx(expected[0], abs=0.006) and parts[-1] == pytest.approx(expected[1], abs=0.006)
    assert not (tmp_path / "run").exists()


def test_the_work_of_a_step_is_counted_in_attention_too():
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def make(precision: str) -> Rehearsal:
        network = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        inputs = torch.randn(1, 5, 8)
        return Rehearsal([network], lambda: network(inputs, inputs, inputs, need_weights=False)[0])

    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    forward = 2 * 5 * weights + 2 * (2 * 5 * 5 * 8)
    # Backward: the weights' gradients, those of the inputs but the first ones', and two for each product of attention.
    backward = 2 * 5 * weights + 2 * 5 * 8 * 8 + 2 * 2 * (2 * 5 * 5 * 8)
    assert count_flops(make) == forward + backward


# ---------------------------------------------------------------------------------------------------------------------
# What fits on which GPU

REPORTED = {
    "8 GiB (7.6 of them usable)": 7.6, "12 GiB (11.6)": 11.6, "16 GiB (14.6, a T4)": 14.6, "24 GiB (23.6)": 23.6,
    "80 GiB (79)": 79.0,
}  # fmt: skip


def in_cell(way: Cut) -> str:
    checkpointing = ", checkpointing" if way.checkpointing else ""
    return f"{way.accumulation} × {way.batch_size}{checkpointing}: {way.needed - BESIDE:.1f}"


@pytest.mark.parametrize("name", REPORTED)
def test_the_pages_table_is_what_is_chosen(name):
    gib = REPORTED[name]
    ways = fastest("controlnet", 16, gib), fastest("controlnet", 16, gib, eight_bit=True), fastest("lora", 4, gib)
    row = f"| {' | '.join([name, *map(in_cell, ways)])} |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert all(way.needed <= gib for way in ways[1:]), "what is said to fit does"
    assert all(way.batch_size * way.accumulation == samples for way, samples in zip(ways, (16, 16, 4)))


@pytest.mark.parametrize(
    "program, words, gib, expected",
    [
        ("train.py", ["--preset", "sd14"], 23.6, (8, 2, False)),
        ("train.py", ["--preset", "sd14", "--use_8bit_adam"], 7.6, (1, 16, False)),
        ("train.py", ["--preset", "sd14"], 5.0, (1, 16, True)),
        ("train_lora.py", ["--preset", "style-hub"], 23.6, (4, 1, False)),
        ("train_dreambooth_lora.py", ["--preset", "dreambooth-sd"], 7.6, (1, 2, False)),
    ],
)
def test_a_preset_for_stable_diffusion_fits_the_gpu_and_says_so(program, words, gib, expected, monkeypatch, capsys):
    before = parsed(monkeypatch, program, *words)
    assert "GiB" not in capsys.readouterr().out, "without a GPU it is as the preset says"
    monkeypatch.setattr(devices, "memory_bytes", lambda device: int(gib * GIB))
    after = parsed(monkeypatch, program, *words)
    assert (after.train_batch_size, after.gradient_accumulation_steps, after.gradient_checkpointing) == expected
    said = capsys.readouterr().out
    assert f"this GPU has {gib:.1f} GiB" in said and ("may not fit" in said) == (gib < 6)
    assert not differences(settings_of(before), settings_of(after), False), "another GPU may go on with the run"


def test_how_a_step_is_cut_is_said_once(monkeypatch, capsys):
    """A program reads its flags twice, as PyTorch takes seconds to come in between."""
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 79 * GIB)
    assert parsed(monkeypatch, "train.py", "--preset", "sd14") == parsed(monkeypatch, "train.py", "--preset", "sd14")
    assert capsys.readouterr().out.count("A step is 1 batch of 16") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "sd14", "--train_batch_size", "2"],
        ["--preset", "sd14", "--gradient_checkpointing"],
        ["--preset", "sd14", "--resolution=256"],
        ["--preset", "sd14", "--mixed_precision", "no"],
        ["--preset", "sd14", "--fit_memory", "no"],
        ["--preset", "style-sd", "--lora_layers", "all"],
    ],
)
def test_what_is_typed_or_was_not_measured_is_left_as_it_is(words, monkeypatch, capsys):
    program = PRESETS[words[1]].program
    without_a_gpu = parsed(monkeypatch, program, *words)
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 79 * GIB)
    assert parsed(monkeypatch, program, *words) == without_a_gpu
    assert capsys.readouterr().out == ""


class TwoBatches(Rehearsal):
    """A step that accumulates the gradients of two batches."""

    def __call__(self) -> None:
        self.backward()
        super().__call__()


@pytest.mark.skipif(not can_simulate(), reason="simulating a step needs PyTorch 2.5 or later")
def test_a_step_of_several_batches_takes_what_rehearsing_two_of_them_takes():
    def peak(kind: type, accumulated: bool) -> int:
        def make() -> Rehearsal:
            network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64))
            return kind([network], lambda: network(torch.empty(1000, 64)))

        with simulation():
            return sum(step_peaks(make, accumulated)[1].values())

    assert peak(Rehearsal, True) == peak(TwoBatches, False) > peak(Rehearsal, False)
