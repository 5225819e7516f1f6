"""Model cards beside what was trained, and both sent to the hub by the hub's own client, with the hub replaced."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_cards import LORA

import train
import train_lora
from fake_hub import TOKEN, Hub, serve
from finetune.model.cards import read_texts, write_card
from finetune.run import settings as run_settings
from lora.model import WEIGHTS_FILE
from processes import BASE, call

SMALL = ["--pretrained_model_name_or_path", BASE, "--resolution", "64", "--train_batch_size", "1", "--max_train_steps"]


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process may write to."""
    with serve() as hub:
        monkeypatch.setattr("finetune.model.upload.HfApi", partial(HfApi, endpoint=hub.url))
        for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
            if hasattr(sys.modules[name], "ENDPOINT"):  # older releases do not only ask their `HfApi` for it
                monkeypatch.setattr(sys.modules[name], "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def prints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("me") / "prints"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 60, 30)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a print")
    return folder


def train_a_lora(output_dir: Path, prints: Path, *flags: str) -> tuple[int, str]:
    own = ["--train_data_dir", str(prints), "--rank", "2", "--alpha", "1", "--checkpointing_steps", "0"]
    return call(train_lora.main, *SMALL, "1", *own, "--output_dir", str(output_dir), *flags)


def test_a_lora_arrives_with_its_card_and_again_without_training(hub: Hub, prints, tmp_path):
    status, said = train_a_lora(tmp_path / "cat", prints, "--push_to_hub")
    assert status == 0, said
    sent = hub.repos["student/cat"]
    assert set(sent) == {"README.md", WEIGHTS_FILE} and f"Sent to {hub.url}/student/cat" in said
    assert all(content == (tmp_path / "cat" / name).read_bytes() for name, content in sent.items())
    card = ModelCard.load(tmp_path / "cat" / "README.md")
    assert card.data.library_name == "diffusers" and "lora" in card.data.tags
    assert card.data.base_model is None  # a folder: the hub would look for a model of that name
    assert "# LoRA for tiny_sd, trained on prints" in card.text and "| rank | 2 |" in card.text
    assert "--train_data_dir prints" in card.text and str(prints.parent) not in str(card)
    assert "| loss | " in card.text and "load_lora_weights" in card.text

    hub.repos.clear()
    (tmp_path / "cat" / "README.md").write_text("my own words")
    status, said = train_a_lora(
        tmp_path / "cat", prints, "--push_to_hub", "--hub_model_id", "class/cat", "--resume_from_checkpoint", "latest",
        "--also_save", "kohya",
    )  # fmt: skip
    assert status == 0 and "nothing was trained" in said
    assert hub.repos["class/cat"]["README.md"] == b"my own words" and len(hub.repos["class/cat"]) == 3


def test_what_cannot_be_sent_stays_and_is_sent_the_next_time(hub: Hub, prints, tmp_path):
    hub.full = True
    status, said = train_a_lora(tmp_path / "cat", prints, "--push_to_hub")
    assert status == 1 and "could not be sent to student/cat" in said and "start the same command again" in said
    assert "Traceback" not in said and load_file(tmp_path / "cat" / WEIGHTS_FILE)
    hub.full = False
    status, said = train_a_lora(tmp_path / "cat", prints, "--push_to_hub", "--resume_from_checkpoint", "latest")
    assert status == 0 and "nothing was trained" in said and WEIGHTS_FILE in hub.repos["student/cat"]


@pytest.mark.parametrize("token, offline, flags, words", [
    (None, False, ["--push_to_hub"], "--push_to_hub needs a token"),
    (TOKEN, True, ["--push_to_hub"], "while HF_HUB_OFFLINE is set"),
    ("hf_wrong", False, ["--push_to_hub"], "does not take 'cat': "),
    (TOKEN, False, ["--push_to_hub", "--hub_model_id", "my cat"], "'my cat' is no name for a model of the hub"),
    (TOKEN, False, ["--hub_model_id", "me/cat"], "give both, or neither"),
])  # fmt: skip
def test_what_cannot_be_sent_later_is_said_before_training(
    hub: Hub, prints, tmp_path, monkeypatch, token, offline, flags, words
):
    monkeypatch.setattr("finetune.model.upload.get_token", lambda: token)  # this computer may be logged in
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_TOKEN", token or "")
    status, said = train_a_lora(tmp_path / "cat", prints, *flags)
    assert status != 0 and words in said and "Traceback" not in said
    assert not list((tmp_path).glob("cat/*.safetensors")) and not hub.repos


@pytest.mark.skipif(
    not hasattr(HfApi, "auth_check") or "write" not in inspect.signature(HfApi.auth_check).parameters,
    reason="this huggingface-hub cannot ask whether one may write",
)
def test_to_a_repository_of_others_nothing_is_trained(hub: Hub, prints, tmp_path):
    hub.read_only.add("class/cat")
    status, said = train_a_lora(tmp_path / "cat", prints, "--push_to_hub", "--hub_model_id", "class/cat")
    assert status == 1 and "does not take 'class/cat'" in said and "your token may write" in said
    assert not list((tmp_path).glob("cat/*.safetensors"))


def test_without_a_connection_nothing_is_trained(prints, tmp_path, monkeypatch):
    with serve() as gone:
        pass
    monkeypatch.setattr("finetune.model.upload.HfApi", partial(HfApi, endpoint=gone.url))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    status, said = train_a_lora(tmp_path / "cat", prints, "--push_to_hub")
    assert status == 1 and "Check the connection" in said and "Nothing was trained" in said


def test_a_controlnet_says_how_it_came_about(hub: Hub, tmp_path):
    data = ["--dataset_name", "rendered", "--max_train_samples", "4", "--gradient_accumulation_steps", "1"]
    own = ["--conditioning_channels", "8", "8", "8", "8", "--validation_steps", "0", "--push_to_hub"]
    status, said = call(train.main, *SMALL, "1", *data, *own, "--output_dir", str(tmp_path))
    assert status == 0, said
    folder = tmp_path / "controlnet"
    texts = read_texts(folder / "diffusion_pytorch_model.safetensors")
    assert texts["modelspec.architecture"] == "tiny-sd/controlnet" and texts["ss_steps"] == "1"
    assert texts["modelspec.resolution"] == "64x64" and "ss_network_dim" not in texts
    assert "# ControlNet for tiny_sd, trained on rendered" in (folder / "README.md").read_text()
    sent = hub.repos[f"student/{tmp_path.name}"]
    assert set(sent) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert json.loads(sent["config.json"])["conditioning_embedding_out_channels"] == [8, 8, 8, 8]


def test_the_card_has_the_picture_and_the_figures_of_its_step(tmp_path):
    (tmp_path / "validation").mkdir()
    for step in (10, 20):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(tmp_path / "validation" / f"step-{step:06d}.png")
    base = {"words": "CompVis/stable-diffusion-v1-4", "identity": "CompVis/stable-diffusion-v1-4"}
    data = {"words": "9 samples of fusing/fill50k", "identity": "9 ('fusing/fill50k', 'f')"}
    settings = {
        **LORA.settings,
        "base": base,
        "data": data,
        "instance_prompt": "a `sks`\n```\ncat",
        "lr_scheduler": "|",
    }
    origin = replace(LORA, settings=settings, figures={"validation/mean_iou": 0.91234567, "loss": 0.1})
    place = tmp_path / "controlnet"
    place.mkdir()
    write_card(origin, place, tmp_path, place)
    assert Image.open(place / "samples.png").getpixel((0, 0)) == (20, 0, 0)
    card = ModelCard.load(place / "README.md")
    assert card.data.base_model == "CompVis/stable-diffusion-v1-4" and card.data.datasets == ["fusing/fill50k"]
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("iou", 0.9123)]
    assert "| validation/mean_iou | 0.9123 |" in card.text and "(samples.png)" in card.text
    assert "````\na `sks`\n```\ncat\n````" in card.text and r"| lr_scheduler | \| |" in card.text

    run_settings.keep(tmp_path, settings, finished=20, result="controlnet")
    new = tmp_path / "new"
    new.mkdir()
    write_card(replace(origin, figures={}), new, tmp_path, place)  # started again, with nothing left to do
    assert (new / "README.md").read_bytes() == (place / "README.md").read_bytes() and (new / "samples.png").is_file()
    write_card(replace(origin, steps=30, figures={}), place, tmp_path, place)
    assert "0.9123" not in (place / "README.md").read_text()
