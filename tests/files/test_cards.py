"""What trained files say of themselves: the same bytes for the same run, and what other programs read in them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune import __version__
from finetune.model.cards import Origin, architecture_of, file_texts, public_name, read_texts, write_texts
from lora.model import KOHYA_FILE, WEIGHTS_FILE, save_kohya, save_lora
from made_loras import random_lora
from processes import BASE, ROOT

SD_1 = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "in_channels": 4}
SETTINGS = {
    "program": "train_dreambooth_lora.py", "base": {"words": "/home/me/sd-1.4", "identity": "x"},
    "data": {"words": "5 samples of ../my cats", "identity": "y"}, "samples_per_step": 4, "resolution": 512,
    "rank": 3, "alpha": 2.0, "lora_layers": "attention", "learning_rate": 1e-4, "seed": 0, "snr_gamma": None,
    "instance_prompt": "a photo of a sks cat", "max_train_steps": 30,
}  # fmt: skip
LORA = Origin("LoRA", SETTINGS, 20, "stable-diffusion-v1", "epsilon")


def test_other_programs_find_their_own_names():
    texts = file_texts(LORA)
    assert {name: texts[name] for name in texts if name in {
        "modelspec.architecture", "modelspec.resolution", "modelspec.prediction_type", "modelspec.trigger_phrase",
        "ss_base_model_version", "ss_v2", "ss_resolution", "ss_network_dim", "ss_network_alpha", "ss_steps",
        "ss_num_train_images", "ss_sd_model_name", "finetune.alpha", "finetune.version",
    }} == {
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon", "modelspec.trigger_phrase": "a photo of a sks cat",
        "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_resolution": "(512, 512)", "ss_network_dim": "3",
        "ss_network_alpha": "3.0", "ss_steps": "20", "ss_num_train_images": "5", "ss_sd_model_name": "sd-1.4",
        "finetune.alpha": "2.0", "finetune.version": __version__,
    }  # fmt: skip
    assert json.loads(texts["ss_dataset_dirs"]) == {"my cats": {"n_repeats": 1, "img_count": 5}}
    assert "home" not in json.dumps(texts) and all(isinstance(text, str) for text in texts.values())
    assert "ss_min_snr_gamma" not in texts  # which was not used
    mandatory = {"sai_model_spec", "architecture", "implementation", "title", "resolution"}
    assert all(texts[f"modelspec.{name}"] for name in mandatory)


def test_the_version_is_the_packages():
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("unet, predicted, name", [
    (SD_1, "epsilon", "stable-diffusion-v1"),
    ({**SD_1, "cross_attention_dim": 1024}, "epsilon", "stable-diffusion-v2-512"),
    ({**SD_1, "cross_attention_dim": 1024}, "v_prediction", "stable-diffusion-v2-768-v"),
    ({**SD_1, "block_out_channels": [64, 128]}, "epsilon", "tiny-sd"),
])  # fmt: skip
def test_the_base_is_called_what_file_managers_call_it(unet, predicted, name):
    assert architecture_of(unet, predicted, "../tiny_sd") == name


@pytest.mark.parametrize("path, name", [
    ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"), ("/home/me/models/mine/", "mine"),
    ("../tiny_sd", "tiny_sd"), (r"C:\Users\me\sd.safetensors", "sd.safetensors"), ("rendered", "rendered"), ("/", "/"),
])  # fmt: skip
def test_nobody_learns_where_a_file_lay(path, name):
    assert public_name(path) == name


def test_the_same_texts_make_the_same_bytes_and_leave_the_tensors(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(7), "half": torch.randn(2).half(), "empty": torch.zeros(0)}
    texts = {**file_texts(LORA), "odd": "\udce4 \n\x00 ü 🙂"}
    for name in ("one", "two"):
        save_file(tensors, str(tmp_path / name), metadata={"format": "pt", **{letter: letter for letter in "abcdefgh"}})
        write_texts(tmp_path / name, texts if name == "one" else dict(reversed(texts.items())))
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    read = load_file(tmp_path / "one")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(str(tmp_path / "one"), "pt") as file:
        said = file.metadata()
    assert said == read_texts(tmp_path / "one") and said["odd"] == "? \n\x00 ü 🙂" and "c" not in said
    tensors_bytes = content[8 + int.from_bytes(content[:8], "little") :]
    assert said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors_bytes).hexdigest()}"
    assert not list(tmp_path.glob(".*"))


def test_a_card_is_utf_8_whatever_the_system_writes_texts_in(tmp_path):
    """As the hub reads it; a prompt may be in any language, and Windows writes its country's letters."""
    program = (
        "import pathlib, sys; from finetune.run.checkpoints import write_file\n"
        "write_file(pathlib.Path(sys.argv[1]), 'eine \\u732b \\u00fc')"
    )
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # of which Python makes ASCII
    command = [sys.executable, "-c", program, str(tmp_path / "README.md")]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **plain}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "README.md").read_bytes().decode() == "eine 猫 ü"


def test_a_file_that_cannot_be_rewritten_is_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3)}, str(file), metadata={"format": "pt"})
    before = file.read_bytes()
    monkeypatch.setattr(
        "finetune.model.cards.shutil.copyfileobj", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        write_texts(file, {"format": "pt"})
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A LoRA of rank 3 trained with alpha 2, on both models, in both layouts."""
    folder = tmp_path_factory.mktemp("saved")
    save_lora(random_lora(), folder, kohya=True, texts=file_texts(LORA))
    return folder


def strength(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """What the loaded LoRA adds to each adapted weight."""
    return {
        f"{part}.{name.replace('text_model.', '')}": module.get_delta_weight(module.active_adapters[0])
        for part in ("unet", "text_encoder")
        for name, module in getattr(pipeline, part).named_modules()
        if hasattr(module, "lora_A")
    }


def test_the_alpha_that_diffusers_believes_is_the_files(saved, tmp_path):
    save_file(load_file(saved / WEIGHTS_FILE), str(tmp_path / "bare.safetensors"), metadata={"format": "pt"})
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    added = []
    for file in (tmp_path / "bare.safetensors", saved / WEIGHTS_FILE, saved / KOHYA_FILE):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        added.append(strength(pipeline))
        pipeline.unload_lora_weights()
    bare, ours, kohya = added
    denoiser = random_lora()
    trained = {f"unet.{n}": m for n, m in denoiser.unet.named_modules() if hasattr(m, "lora_A")}
    assert len(bare) > len(trained) > 20  # those of the text encoder, too
    for name, matrix in bare.items():
        assert torch.equal(matrix, ours[name]) and torch.equal(matrix, kohya[name])
    for name, module in trained.items():
        assert torch.allclose(module.get_delta_weight("default"), ours[name], atol=1e-6), name
    settings = json.loads(read_texts(saved / WEIGHTS_FILE)["lora_adapter_metadata"])
    assert settings["unet.r"] == settings["unet.lora_alpha"] == settings["text_encoder.r"] == 3


def test_kohyas_file_made_later_is_the_one_made_at_once(saved):
    at_once = (saved / KOHYA_FILE).read_bytes()
    (saved / KOHYA_FILE).unlink()
    save_kohya(saved)
    assert (saved / KOHYA_FILE).read_bytes() == at_once
    assert "lora_adapter_metadata" not in read_texts(saved / KOHYA_FILE)  # beside alphas diffusers refuses it
    assert read_texts(saved / KOHYA_FILE)["ss_steps"] == "20"
