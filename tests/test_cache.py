"""Encodings are computed once, reused when they are the right ones, and never when they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fill50k import RenderedFill50K
from finetune.base import BaseModel
from finetune.cache import Samples, load_encodings

BASE = str(Path(__file__).resolve().parent.parent / "tiny_sd")


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


def test_damaged_encodings_are_noticed_and_computed_again(base, accelerator, tmp_path, capsys):
    data = RenderedFill50K(size=3)
    good = np.array(load_encodings(base, data, 64, tmp_path, accelerator).latents)
    (folder,) = tmp_path.iterdir()
    np.save(folder / "latents.npy", np.zeros_like(good))
    again = load_encodings(base, data, 64, tmp_path, accelerator)
    assert "computing them again" in capsys.readouterr().out
    assert np.array_equal(again.latents, good)
