"""Every number on every command line is checked before any work, and no table holds what was not measured."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import evaluate
import make_canny
import text_to_image
import train
import train_dreambooth_lora
import train_lora
from finetune.argument_types import (
    natural_float,
    number,
    part_above_none,
    picture_size,
    positive_int,
    sampling_steps,
    seed_int,
    share,
)
from finetune.setup import require_hardware
from processes import BASE, ROOT

if find_spec("torch.nn.attention"):  # the benchmarks need a newer PyTorch than the course's
    import caching
    import sample
    import train_step

    BENCHMARKS = {"train_step": (train_step.main, []), "sample": (sample.main, []), "caching": (caching.main, [])}
else:
    BENCHMARKS = {}

HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (positive_int, ["1", "12"], ["0", "-1", "1.5", "nan", "", "x", "1e3", HUGE, "100000000000000000"]),
        (natural_float, ["0", "7.5", "1e-30"], ["-1", "nan", "inf", "-inf", "1e400", "x"]),
        (number(float, above=0), ["1e-5"], ["0", "-0.0", "nan"]),
        (share, ["0", "1", "0.25"], ["10", "1.01", "-0.1", "nan"]),
        (part_above_none, ["1", "0.9"], ["0", "85", "nan"]),
        (sampling_steps, ["1", "1000"], ["0", "1001", HUGE]),
        (picture_size, ["8", "512"], ["0", "4", "100", "-8", "64.0", "8000000000"]),
        (seed_int, ["0", "4294967295"], ["-1", "4294967296", HUGE]),
    ],
)
def test_numbers_are_within_their_limits(kind, good, bad):
    assert [float(kind(text)) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be .*, not '{re.escape(text)}'"):
            kind(text)


def programs() -> list[Path]:
    folders = (
        "finetune",
        "task_1_controlnet",
        "task_2_lora",
        "tiny_sd",
        "benchmarks",
        "grading",
        "page",
        "kit",
        "docs",
    )
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", programs(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_flag_takes_a_number_unchecked(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "type" and isinstance(node.value, ast.Name):
            assert node.value.id not in ("int", "float"), f"line {node.value.lineno}: use an argument type of ours"


PROGRAMS = {
    "train": (train.main, ["--pretrained_model_name_or_path", BASE]),
    "train_lora": (train_lora.main, ["--pretrained_model_name_or_path", BASE, "--train_data_dir", "nowhere"]),
    "dreambooth": (train_dreambooth_lora.main, ["--instance_data_dir", "nowhere", "--instance_prompt", "sks"]),
    "evaluate": (evaluate.main, ["--controlnet", "nowhere", "--output_dir", "nowhere"]),
    "make_canny": (make_canny.main, ["--dataset_name", "nowhere", "--output_dir", "nowhere"]),
    "text_to_image": (text_to_image.main, []),
    **BENCHMARKS,
}
WRONG = [
    ("train", "--checkpoints_total_limit", "-1"),
    ("train", "--checkpoints_total_limit", "0"),
    ("train", "--checkpointing_steps", "-1"),
    ("train", "--proportion_empty_prompts", "10"),
    ("train", "--max_train_samples", "-1"),
    ("train", "--max_train_samples", "0"),
    ("train", "--max_train_steps", "0"),
    ("train", "--learning_rate", "nan"),
    ("train", "--learning_rate", "0"),
    ("train", "--lr_warmup_steps", "-5"),
    ("train", "--lr_scheduler", "cosin"),
    ("train", "--lr_scheduler", "piecewise_constant"),
    ("train", "--resolution", "100"),
    ("train", "--resolution", "0"),
    ("train", "--train_batch_size", "0"),
    ("train", "--gradient_accumulation_steps", "0"),
    ("train", "--max_grad_norm", "-1"),
    ("train", "--snr_gamma", "0"),
    ("train", "--dataloader_num_workers", "-1"),
    ("train", "--validation_steps", "-1"),
    ("train", "--validation_guidance_scale", "inf"),
    ("train", "--conditioning_channels", "0"),
    ("train", "--seed", "-1"),
    ("train_lora", "--rank", "0"),
    ("train_lora", "--alpha", "0"),
    ("train_lora", "--noise_offset", "nan"),
    ("train_lora", "--num_validation_images", "0"),
    ("train_lora", "--validation_epochs", "-1"),
    ("dreambooth", "--num_class_images", "0"),
    ("dreambooth", "--prior_loss_weight", "-1"),
    ("evaluate", "--num_inference_steps", "0"),
    ("evaluate", "--num_inference_steps", "1001"),
    ("evaluate", "--num_conditions", "-1"),
    ("evaluate", "--guidance_scale", "nan"),
    ("make_canny", "--max_samples", "-1"),
    ("make_canny", "--sigma", "nan"),
    ("make_canny", "--sigma", "1e6"),
    ("make_canny", "--resolution", "0"),
    ("make_canny", "--resolution", "4"),
    ("text_to_image", "--num_inference_steps", "0"),
    ("text_to_image", "--num_inference_steps", "5000"),
    ("train_step", "--rounds", "0"),
    ("sample", "--repeats", "0"),
    ("caching", "--samples", "0"),
]


WRONG_HERE = [case for case in WRONG if case[0] in PROGRAMS]


@pytest.mark.parametrize("program, flag, value", WRONG_HERE, ids=[" ".join(case) for case in WRONG_HERE])
def test_a_wrong_number_is_one_sentence_at_once(program, flag, value, monkeypatch, capsys):
    main, needed = PROGRAMS[program]
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *needed, f"{flag}={value}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: " in last and value in last


@pytest.mark.parametrize("flags", [["--learning_rate", "1e-8"], ["--lr_warmup_steps", "4"]])
def test_a_polynomial_that_cannot_fall_is_refused(flags, monkeypatch, capsys):
    """diffusers divides by zero there, or stops after all was encoded."""
    common = ["--lr_scheduler", "polynomial", "--max_train_steps", "4"]
    monkeypatch.setattr(sys, "argv", ["train.py", *common, *flags])
    with pytest.raises(SystemExit):
        train.parse_args()
    assert "--lr_scheduler polynomial falls from" in capsys.readouterr().err


@pytest.mark.parametrize("program, flags, words", [
    (train, ["--lr_warmup_steps", "5"], "--lr_scheduler constant has no warmup"),
    (train, ["--lr_scheduler", "cosine", "--max_train_steps", "5", "--lr_warmup_steps", "5"], "rate is never reached"),
    (train_dreambooth_lora, [*PROGRAMS["dreambooth"][1], "--class_prompt", "a cat"], "only with --with_prior_preserva"),
])  # fmt: skip
def test_what_counts_for_nothing_is_said_once(program, flags, words, monkeypatch, capsys):
    """A program reads its flags twice, as PyTorch takes seconds to come in between."""
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    assert program.parse_args() == program.parse_args()
    assert capsys.readouterr().out.count(words) == 1


def test_help_says_what_a_flag_is_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_lora.py", "--help"])
    with pytest.raises(SystemExit):
        train_lora.parse_args()
    said = " ".join(capsys.readouterr().out.split())
    assert "--resolution RESOLUTION side of the training images, px (default: 512)" in said
    assert "{linear,cosine," in said and "0x" not in said


@pytest.mark.parametrize(
    "name", ["tiny_sdd", "../tiny_sdd", "/nowhere/base", "./base", "C:\\base", "a/b/c", "runs/base.ckpt"]
)
def test_a_mistyped_folder_is_not_a_missing_gpu(name):
    with pytest.raises(RuntimeError, match="There is no folder or file") as error:
        require_hardware(name)
    assert "CUDA" not in str(error.value)


@pytest.mark.skipif(not BENCHMARKS, reason="the benchmarks need a newer PyTorch")
def test_a_ratio_to_what_did_not_run_is_no_number():
    run = {"seconds": 1.0, "first": 1.0, "peak": 1, "weights": 1, "gradients": 1, "optimizer": 1, "flops": 1}
    assert "nan" not in train_step.table({"ours": [run]})
    assert "| – |" in train_step.table({"ours": [run]})
