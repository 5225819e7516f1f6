"""Encodings are computed once, reused when they are the right ones, and never when they are not."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import finetune.data.cache
from fill50k import RenderedFill50K
from finetune.data.cache import Samples, load_encodings
from finetune.model.base import BaseModel
from finetune.run.checkpoints import CheckpointError

BASE = str(Path(__file__).resolve().parents[2] / "tiny_sd")


class Repeating(RenderedFill50K):
    """Three samples whose first and last have the same prompt."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "text": "same prompt"} if index != 1 else sample


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load(BASE)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_encodings_are_what_the_base_model_computes(base, accelerator, tmp_path):
    data = Repeating(size=3)
    encodings = load_encodings(base, data, 64, tmp_path, accelerator)
    for index in range(3):
        image, text = (Samples(data, 64, None)[index][name] for name in ("image", "text"))
        latents, embedding = encodings.sample(index)
        assert torch.allclose(latents, base.encode_images(image[None])[0], atol=1e-4)
        assert torch.allclose(embedding, base.encode_prompts([text])[0], atol=1e-4)
    assert len(encodings.embeddings) == 2  # the prompt that two samples share is stored once


def test_a_second_run_reuses_them(base, accelerator, tmp_path, capsys):
    data = RenderedFill50K(size=3)
    load_encodings(base, data, 64, tmp_path, accelerator)
    (folder,) = tmp_path.iterdir()
    written = (folder / "latents.npy").stat().st_mtime_ns
    load_encodings(base, data, 64, tmp_path, accelerator)
    assert "Reusing the encodings of 3 samples" in capsys.readouterr().out
    assert (folder / "latents.npy").stat().st_mtime_ns == written


def test_other_data_resolution_or_weights_get_their_own(base, accelerator, tmp_path):
    load_encodings(base, RenderedFill50K(size=2), 64, tmp_path, accelerator)
    load_encodings(base, RenderedFill50K(size=3), 64, tmp_path, accelerator)
    load_encodings(base, RenderedFill50K(size=2), 32, tmp_path, accelerator)
    other = BaseModel.load(BASE)
    other.vae.encoder.conv_in.weight.data += 0.01
    load_encodings(other, RenderedFill50K(size=2), 64, tmp_path, accelerator)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_same_weights_with_other_words_or_another_scale_get_their_own(base, accelerator, tmp_path):
    """Also where the last sample, which is encoded again to see, shows nothing of it."""
    data, folder = Captions("a cat", "a house"), tmp_path / "tokenizer"
    kept = load_encodings(base, data, 16, tmp_path / "cache", accelerator)
    shutil.copytree(Path(BASE) / "tokenizer", folder)
    for file in (folder / "vocab.json", folder / "tokenizer.json"):
        text = file.read_text(encoding="utf-8").replace('"cat</w>"', '"?"').replace('"dog</w>"', '"cat</w>"')
        file.write_text(text.replace('"?"', '"dog</w>"'), encoding="utf-8")
    words, scale = BaseModel.load(BASE), BaseModel.load(BASE)
    words.tokenizer = type(base.tokenizer).from_pretrained(folder)
    found = load_encodings(words, data, 16, tmp_path / "cache", accelerator)
    assert torch.allclose(found.sample(0)[1], base.encode_prompts(["a dog"])[0], atol=1e-4)
    scale.vae.register_to_config(scaling_factor=1.01 * base.vae.config.scaling_factor)
    found = load_encodings(scale, data, 16, tmp_path / "cache", accelerator)
    assert torch.allclose(found.sample(0)[0], 1.01 * kept.sample(0)[0], atol=1e-4)


@pytest.mark.parametrize("removed", [0, 1, 2, 3])
def test_killed_while_its_helpers_are_removed_an_encoding_is_still_whole(
    base, accelerator, tmp_path, monkeypatch, removed
):
    data, unlink, left = Captions("a cat", "a dog"), Path.unlink, [removed]

    def killed(path: Path) -> None:
        if path.suffix in (".done", ".jsonl") and not left[0]:
            raise KeyboardInterrupt
        left[0] -= path.suffix in (".done", ".jsonl")
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt) if removed < 3 else nullcontext():
            load_encodings(base, data, 16, tmp_path, accelerator)
    again = load_encodings(base, data, 16, tmp_path, accelerator)
    assert [again.text(index) for index in range(2)] == ["a cat", "a dog"]


class Captions:
    """Pictures of one colour with these captions."""

    def __init__(self, *texts: str) -> None:
        self.all, self.fingerprint = texts, repr(texts)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index):
        return {"image": Image.new("RGB", (16, 16)), "text": self.all[index]}


def test_captions_that_are_cut_are_told(base, accelerator, tmp_path, capsys):
    long = "a small house with a red roof " * 6
    data = Captions("a cat", long + "cat", long + "cat", long + "ship")
    embeddings = load_encodings(base, data, 16, tmp_path, accelerator).embeddings
    assert np.allclose(embeddings[1], embeddings[2]), "they are the same to the text encoder, hence the note"
    said = " ".join(capsys.readouterr().out.split())
    assert "reads 32 tokens, and prompts that are longer are cut: 2 of 3 different ones. Of" in said
    assert f"Of {long + 'cat'!r} it reads 'a small house with a red roof a small house" in said
    assert said.count("cat") == 1, "the end is not among what it reads"


def test_captions_that_fit_are_not_spoken_of(base, capsys):
    words = "cat " * 30  # with the marks of begin and end, as many tokens as there are places
    base.tell_of_cut(["a cat", words, "", "é" * 15], print)
    assert not capsys.readouterr().out
    base.tell_of_cut([words + "dog"], print)
    assert "1 of 1 different ones" in capsys.readouterr().out


def test_damaged_encodings_are_noticed_and_computed_again(base, accelerator, tmp_path, capsys):
    data = RenderedFill50K(size=3)
    good = np.array(load_encodings(base, data, 64, tmp_path, accelerator).latents)
    (folder,) = tmp_path.iterdir()
    np.save(folder / "latents.npy", np.zeros_like(good))
    again = load_encodings(base, data, 64, tmp_path, accelerator)
    assert "computing them again" in capsys.readouterr().out
    assert np.array_equal(again.latents, good)


class Counting(RenderedFill50K):
    """Says which samples were asked for, and stops the program at one of them."""

    stop_at = -1

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        return super().__getitem__(index)


def test_an_interrupted_encoding_goes_on_where_it_was(base, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.data.cache, "PIXELS_AT_ONCE", 16 * 16**2)
    whole = load_encodings(base, RenderedFill50K(size=70), 16, tmp_path / "whole", accelerator)
    monkeypatch.setattr(finetune.data.cache, "SAVE_EVERY", 16)
    data = Counting(size=70)
    data.asked, data.stop_at = [], 50
    with pytest.raises(KeyboardInterrupt):
        load_encodings(base, data, 16, tmp_path / "parts", accelerator)
    (unfinished,) = (tmp_path / "parts").iterdir()
    with (unfinished / "latents.npy").open("ab") as file:
        file.write(b"half a row")  # what a killed process may leave
    data.asked, data.stop_at = [], -1
    again = load_encodings(base, data, 16, tmp_path / "parts", accelerator)
    assert data.asked == list(range(48, 70))
    assert np.array_equal(again.latents, whole.latents) and np.array_equal(again.embeddings, whole.embeddings)
    assert [again.text(i) for i in range(70)] == [data.render(i).text for i in range(70)]
    assert not (tmp_path / "parts" / unfinished.name).exists()


def test_a_full_disk_is_named_and_a_damaged_picture_is_not_taken_for_one(base, accelerator, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    class Damaged(RenderedFill50K):
        def __getitem__(self, index):
            raise OSError("3.png is damaged")

    with pytest.raises(OSError, match="^3.png is damaged$"):
        load_encodings(base, Damaged(size=3), 16, tmp_path, accelerator)
    monkeypatch.setattr(finetune.data.cache._Rows, "append", full)
    with pytest.raises(CheckpointError, match="No space left.*\n.*Free space and start again"):
        load_encodings(base, RenderedFill50K(size=3), 16, tmp_path, accelerator)
