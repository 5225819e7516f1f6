"""What a picture shows: true drawings, prints, pairs and places are recognised, others are not taken for them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from finetune.data.colors import COLORS
from finetune.model.base import load_part
from processes import BASE
from tiny_sd.measures.lines_and_inks import true_print
from tiny_sd.measures.recognition import (
    asked_for,
    place_asked_for,
    recognise,
    recognise_pair,
    recognise_place,
    recognise_redrawn,
    roundness,
)
from tiny_sd.pictures.icons import load_subjects
from tiny_sd.pictures.places import PLACES
from tiny_sd.pictures.scenes import is_held_out, scene
from true_prints import true_prints


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_part(AutoencoderKL, BASE, "vae")


def test_true_drawings_are_recognised_and_others_are_not_taken_for_them():
    scenes = [scene(10_000_000 + i, 128, 1.0) for i in range(60)]
    found = recognise([image for image, _ in scenes])
    wanted = [asked_for(captions[0]) for _, captions in scenes]
    assert np.mean([one == other for one, other in zip(found, wanted)]) > 0.95
    assert np.mean([one == other for one, other in zip(found, wanted[1:])]) < 0.05


def test_prints_have_the_named_ink_and_paper_and_can_be_recognised():
    scenes = [scene(10_000_000 + i, 128, print_share=1.0) for i in range(60)]
    around = {True: [], False: []}
    for image, captions in scenes:
        ink, subject, paper = re.fullmatch(r"an? (.+) print of (.+) on (.+)", captions[2]).groups()
        rays = subject.endswith(" with rays")
        pixels = np.asarray(image)
        assert not is_held_out(ink, paper)
        assert (pixels[0] == COLORS[paper]).all(), "the margin is not paper"
        is_ink = np.abs(pixels.astype(int) - COLORS[ink]).max(2) < 30
        assert is_ink.mean() > 0.02, captions
        around[rays].append(is_ink[6:10].mean())
    assert min(around[True]) > 0.05 and max(around[False]) == 0, "rays are not where the captions say"
    found = recognise_redrawn([image for image, _ in scenes])
    assert np.mean([one == asked_for(captions[0]) for one, (_, captions) in zip(found, scenes)]) > 0.9


def test_things_stand_where_their_captions_say():
    scenes = [scene(10_000_000 + i, 128, 1.0, place_share=1.0) for i in range(60)]
    wanted = [place_asked_for(captions[0]) for _, captions in scenes]
    assert set(wanted) == set(PLACES) and all(asked_for(captions[0]) for _, captions in scenes)
    found = recognise_place([image for image, _ in scenes])
    assert np.mean([one == place for one, place in zip(found, wanted)]) > 0.95


def test_true_pairs_are_recognised_by_their_halves():
    scenes = [scene(10_000_000 + i, 128, 1.0, pair_share=1.0) for i in range(30)]
    wanted = [re.sub(r"^\w+ drawing of ", "", captions[0]).split(" and ") for _, captions in scenes]
    found = recognise_pair([image for image, _ in scenes])
    assert np.mean([pair == set(names) for pair, names in zip(found, wanted)]) > 0.9
    assert np.mean([pair == set(names) for pair, names in zip(found, wanted[1:])]) == 0


def wavering(vae: AutoencoderKL, image: Image.Image, seed: int) -> Image.Image:
    """As a model might draw it: 128 px, every line moved by 4 px here and there, and through the base's autoencoder."""
    rng = np.random.default_rng(seed)
    shifts = np.stack([gaussian_filter(rng.normal(size=(128, 128)), 10) for _ in range(2)])
    places = np.mgrid[:128, :128] + 4 * shifts / shifts.std()
    rgb = np.asarray(image.convert("RGB").resize((128, 128)), np.float32)
    moved = np.stack([map_coordinates(rgb[..., i], places, order=1, mode="nearest") for i in range(3)])
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(moved)[None] / 127.5 - 1).latent_dist.mode()
        decoded = vae.decode(latents).sample[0].clamp(-1, 1).permute(1, 2, 0)
    return Image.fromarray(((decoded + 1) * 127.5).round().byte().numpy())


def test_what_a_print_shows_is_recognised(vae):
    subjects = dict(list(load_subjects().items())[::10])  # from all groups
    of_flat = {subject: true_print("flat", name, seed=i) for i, (name, subject) in enumerate(subjects.items())}
    shown, prints = zip(*of_flat.items(), *true_prints().items())
    redrawn = [wavering(vae, image, seed) for seed, image in enumerate(prints)]
    for images, share in ((prints, 0.95), (redrawn, 0.85)):
        right = [found == subject for found, subject in zip(recognise_redrawn(images), shown)]
        assert len(images) > 50 and sum(right) >= share * len(images), f"{sum(right)} of {len(right)}"


def test_a_prompt_names_a_thing():
    assert asked_for("a sks hot dog in a garden") is None and asked_for("shaded drawing of a hot dog") == "a hot dog"


@pytest.mark.parametrize("radius, least", [(12, 0.96), (30, 0.98), (90, 0.98)])
def test_a_disc_is_round_and_a_square_is_not(radius, least):
    """A true disc, also one that leaves the frame, overlaps the circle that fits it; a square less."""
    rows, columns = np.ogrid[:128, :128]
    away = np.stack(np.broadcast_arrays(rows - 31.3, columns - 50.8))
    assert roundness(np.hypot(*away) <= radius) >= least
    if radius < 31:
        assert roundness(np.abs(away).max(0) <= radius) < 0.92


def test_a_plain_picture_shows_nothing():
    assert recognise([Image.new("RGB", (128, 128), "teal")]) == [None]
