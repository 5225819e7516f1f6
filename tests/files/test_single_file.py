"""A base model from one file is the base model from its folder; what is none, or could be code, is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_torch_version
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import train
import train_lora
from export_original import to_original
from finetune.model import single_file
from finetune.model.base import BaseModelError
from finetune.model.single_file import as_folder, configurations, kind_of, write_configuration
from original_layout import open_clip_to_original, original_weights
from processes import BASE, call
from small_bases import small_base

PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
SAFE_PICKLES = pytest.mark.skipif(is_torch_version("<", "2.6"), reason="no pickle is read by this PyTorch")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """The embedded base in the original layout."""
    return {name: tensor.contiguous() for name, tensor in original_weights(Path(BASE)).items()}


@pytest.fixture
def small(monkeypatch):
    """The embedded base is what files hold: Stable Diffusion itself is too large for a test."""
    monkeypatch.setattr(single_file, "kind_of", lambda *_: "small")
    monkeypatch.setattr(single_file, "write_configuration", lambda *_: Path(BASE))


def assert_is_the_base(folder: str) -> None:
    for part, kind in PARTS.items():
        right, read = (kind.from_pretrained(name, subfolder=part).state_dict() for name in (BASE, folder))
        assert right.keys() == read.keys()
        assert all(torch.equal(read[name].float(), right[name].float()) for name in right), part


def test_a_file_becomes_the_folder_of_the_same_base_once(small, weights, tmp_path, capsys):
    file = tmp_path / "my model.safetensors"
    save_file(weights, str(file))
    folder = as_folder(str(file))
    assert folder == str(tmp_path / "my model-diffusers") and "its parts go to" in capsys.readouterr().out
    assert_is_the_base(folder)
    assert as_folder(str(file)) == folder and not capsys.readouterr().out
    os.utime(file, ns=(0, 0))  # another file of that name
    assert as_folder(str(file)) == folder and "its parts go to" in capsys.readouterr().out
    assert as_folder(BASE) == BASE and as_folder("runwayml/model.ckpt") == "runwayml/model.ckpt"


def test_a_training_takes_the_file(small, weights, tmp_path):
    file, prints = tmp_path / "base.safetensors", tmp_path / "prints"
    save_file(weights, str(file))
    prints.mkdir()
    Image.new("RGB", (64, 64), (90, 60, 30)).save(prints / "0.png")
    (prints / "0.txt").write_text("a print")
    own = ["--resolution", "64", "--train_batch_size", "1", "--max_train_steps", "1", "--train_data_dir", str(prints)]
    status, said = call(
        train_lora.main, "--pretrained_model_name_or_path", str(file), "--output_dir", str(tmp_path / "run"), *own
    )
    assert status == 0 and "The trained LoRA" in said, said


def test_a_dry_run_takes_the_file_and_writes_nothing(small, weights, tmp_path, monkeypatch):
    # With fewer layers: what takes the time is the number of operations.
    monkeypatch.setattr(single_file, "write_configuration", lambda *_: Path(small_base()))
    file = tmp_path / "base.safetensors"
    save_file(weights, str(file))
    few = ["--lora_layers", "attention"]  # and fewer trained ones
    for program, preset in ((train, ["demo"]), (train_lora, ["style-tiny", *few])):
        flags = ["--dry_run", "--preset", *preset, "--dataset_name", "OWNER/NAME", "--pretrained_model_name_or_path"]
        folder, one = (
            call(program.main, *flags, name)[1].partition("Trained:")[2] for name in (small_base(), str(file))
        )
        assert folder == one and "on this CPU" in one
    assert list(tmp_path.iterdir()) == [file]


@SAFE_PICKLES
def test_a_pickle_of_weights_is_read(small, weights, tmp_path):
    file = tmp_path / "model.ckpt"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save({"state_dict": {**half, "model_ema.decay": torch.ones(())}, "global_step": 7}, file)
    folder = as_folder(str(file))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype="auto")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(unet.conv_in.weight.half(), half[name])
    size = (Path(folder) / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 2.1 * sum(parameter.numel() for parameter in unet.parameters())  # not made larger than it was


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_what_else_a_pickle_holds_is_never_run(small, weights, tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "model.ckpt"
    for content in ({"state_dict": weights, "callbacks": Hostile(mark)}, Hostile(mark)):
        for save in (torch.save, lambda what, where: where.write_bytes(pickle.dumps(what))):
            save(content, file)
            with pytest.raises(BaseModelError, match="model's .safetensors file"):
                as_folder(str(file))
    assert not mark.exists() and not (tmp_path / "model-diffusers").exists()


def test_a_file_that_is_not_whole_is_refused(small, weights, tmp_path):
    file = tmp_path / "model.safetensors"
    lacking = {name: tensor for name, tensor in weights.items() if ".middle_block.0." not in name}
    save_file(lacking, str(file))
    with pytest.raises(BaseModelError, match="model.safetensors (lacks|does not fit)"):
        as_folder(str(file))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="cannot be read as safetensors"):
        as_folder(str(file))
    assert not (tmp_path / "model-diffusers").exists()


def header(width: int = 320, channels: int = 4, text: int = 768, **more: tuple) -> dict[str, tuple]:
    vae, encoder = "first_stage_model.quant_conv.weight", "cond_stage_model.transformer.x"
    both = {single_file.FIRST: ((width, channels, 3, 3), "F16"), single_file.TEXT: ((width, text), "F16")}
    return {**both, vae: ((8,), "F16"), encoder: ((8,), "F16"), **more}


@pytest.mark.parametrize("name, content, texts, kind", [
    ("sd-v1-4.ckpt", header(), {}, "stable-diffusion-v1"),
    ("v2-1_512-ema.safetensors", header(text=1024), {}, "stable-diffusion-v2-512"),
    ("v2-1_768-ema.safetensors", header(text=1024), {}, "stable-diffusion-v2-768-v"),
    ("mine.safetensors", header(text=1024), {"modelspec.architecture": "stable-diffusion-v2-512"},
     "stable-diffusion-v2-512"),
])  # fmt: skip
def test_the_kind_of_model_is_told(name, content, texts, kind):
    assert kind_of(content, texts, Path(name)) == kind


@pytest.mark.parametrize("said, predicts", [("v", "v_prediction"), ("epsilon", "epsilon"), (None, "epsilon")])
def test_what_the_file_says_of_its_prediction_is_in_the_folder(weights, monkeypatch, tmp_path, said, predicts):
    def small(kind: str, folder: Path, prediction: str | None) -> Path:
        shutil.copytree(
            BASE, folder, ignore=shutil.ignore_patterns("*.safetensors", "pictures", "training", "measures")
        )
        config = folder / "scheduler" / "scheduler_config.json"
        changed = {"prediction_type": prediction} if prediction else {}
        config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
        return folder

    monkeypatch.setattr(single_file, "kind_of", lambda *_: "small")
    monkeypatch.setattr(single_file, "write_configuration", small)
    file = tmp_path / "mine.safetensors"
    save_file(weights, str(file), {"modelspec.prediction_type": said} if said else {})
    assert DDPMScheduler.from_pretrained(as_folder(str(file)), subfolder="scheduler").config.prediction_type == predicts


def test_what_the_file_says_of_its_prediction_counts_before_its_name(tmp_path, capsys):
    texts, file = {"modelspec.prediction_type": "epsilon"}, Path("v2-1_768-ema.safetensors")
    kind = kind_of(header(text=1024), texts, file)
    assert not capsys.readouterr().out, "there is nothing to guess"
    folder = write_configuration(kind, tmp_path, single_file.prediction_of(texts, file))
    assert DDPMScheduler.from_pretrained(folder, subfolder="scheduler").config.prediction_type == "epsilon"
    with pytest.raises(BaseModelError, match="says that it predicts 'sample'"):
        single_file.prediction_of({"modelspec.prediction_type": "sample"}, file)


def test_of_two_programs_on_one_fresh_file_one_makes_the_folder(small, weights, tmp_path, monkeypatch, capfd):
    file = tmp_path / "base.safetensors"
    save_file(weights, str(file))
    made, make = [], single_file.make_folder
    monkeypatch.setattr(single_file, "make_folder", lambda *args: (made.append(args), make(*args)))
    with ThreadPoolExecutor() as programs:
        folders = set(programs.map(as_folder, [str(file)] * 2))
    assert len(made) == 1 and "another program is making" in capfd.readouterr().out
    assert_is_the_base(*folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-diffusers", "base.safetensors"]


@pytest.mark.parametrize("content, words", [
    (header(channels=9), "has a UNet with weights of shapes (320, 9, 3, 3)"),
    (header(text=2048), "(320, 2048)"),
    ({**header(), "conditioner.embedders.0.x": ((1,), "F16")}, "is Stable Diffusion XL"),
    ({"lora_unet_x.alpha": ((), "F32")}, "lacks the UNet and the autoencoder and the text encoder"),
    ({single_file.FIRST: ((320, 4, 3, 3), "F16")}, "lacks the autoencoder and the text encoder"),
])  # fmt: skip
def test_what_is_no_such_model_is_called_what_it_is(content, words):
    with pytest.raises(BaseModelError) as error:
        kind_of(content, {}, Path("file.safetensors"))
    assert words in str(error.value)


@pytest.mark.parametrize("kind, unet_size, text_size", [
    ("stable-diffusion-v1", 859_520_964, 123_060_480), ("stable-diffusion-v2-512", 865_910_724, 340_387_840),
    ("stable-diffusion-v2-768-v", 865_910_724, 340_387_840),
])  # fmt: skip
def test_the_configurations_are_those_of_the_published_models(kind, unet_size, text_size):
    content = configurations()[kind]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(content["unet"])
        vae = AutoencoderKL.from_config(content["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**content["text_encoder"]))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (unet, vae, text_encoder)]
    assert sizes == [unet_size, 83_653_863, text_size]
    original = to_original(unet.state_dict(), unet.config, "model.diffusion_model.")
    assert len(original) == len(unet.state_dict()) == 686
    shapes = {name: (tuple(tensor.shape), "F16") for name, tensor in original.items()}
    assert kind_of({**header(), **shapes}, {"modelspec.architecture": kind}, Path("x")) == kind
    assert (content["scheduler"]["prediction_type"] == "v_prediction") == kind.endswith("-v")


def test_prompts_become_the_tokens_of_clip(tmp_path):
    for kind, padding in (("stable-diffusion-v1", 49407), ("stable-diffusion-v2-768-v", 0)):
        folder = write_configuration(kind, tmp_path / kind)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        assert len(tokenizer) == 49408 and tokenizer.pad_token_id == padding and tokenizer.model_max_length == 77
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_text_encoder_of_the_second_kind_is_read(weights, tmp_path):
    settings = {**configurations()["stable-diffusion-v2-512"]["text_encoder"], "num_hidden_layers": 1, "vocab_size": 9}
    torch.manual_seed(0)
    right = CLIPTextModel(CLIPTextConfig(**settings))
    configuration = tmp_path / "configuration"
    for part in ("unet", "vae", "scheduler", "tokenizer", "text_encoder"):
        (configuration / part).mkdir(parents=True)
        for file in Path(BASE, part).glob("*[!s]"):  # but weights
            if file.suffix != ".safetensors":
                (configuration / part / file.name).write_bytes(file.read_bytes())
    (configuration / "model_index.json").write_bytes(Path(BASE, "model_index.json").read_bytes())
    (configuration / "text_encoder" / "config.json").write_text(json.dumps(settings))
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("cond_stage_model.")}
    file = tmp_path / "model.safetensors"
    save_file({**kept, **open_clip_to_original(right.state_dict())}, str(file))
    read = single_file.read_parts(file, configuration, torch.float32, file).text_encoder
    assert read.state_dict().keys() == right.state_dict().keys()
    assert all(torch.equal(tensor, right.state_dict()[name]) for name, tensor in read.state_dict().items())
