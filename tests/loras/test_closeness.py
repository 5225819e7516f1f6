"""What the measures of Task 2 are worth: true images of the style or the subject score well, others do not."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from closeness import drift, style_distances, style_distances_among, subject_scores
from processes import ROOT
from tiny_sd.measures.marks import SAMPLES, sample_module
from tiny_sd.pictures.scenes import scene

draw_cat, in_style = sample_module("cat").cat, sample_module("linocut").in_style
# Those of the first 4000 scenes whose captions are "a cat" or "shaded drawing of a cat".
WITH_A_CAT = (
    247, 407, 472, 675, 679, 935, 982, 1318, 1447, 1682, 2014, 2134, 2348, 2389, 2459, 3000, 3757, 3915,
)  # fmt: skip


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(ROOT / "tiny_sd" / "vae")


@pytest.fixture(scope="module")
def style() -> list[Image.Image]:
    return [Image.open(path) for path in sorted((SAMPLES / "artistic-custom" / "train").glob("*.png"))[::2]]


@pytest.fixture(scope="module")
def cat() -> list[Image.Image]:
    return [Image.open(path) for path in sorted((SAMPLES / "dreambooth-cat").glob("*.png"))]


@pytest.fixture(scope="module")
def things() -> list[Image.Image]:
    """What the base draws without a LoRA: everyday things on plain backgrounds."""
    return [scene(i, 128, 1.0)[0] for i in range(24)]


@pytest.fixture(scope="module")
def other_cats() -> list[Image.Image]:
    scenes = [scene(i, 128, 1.0) for i in WITH_A_CAT]
    assert all({"a cat", "shaded drawing of a cat"} & set(captions) for _, captions in scenes)
    return [image for image, _ in scenes]


def test_true_images_of_the_style_are_near_and_others_far(vae, style, cat, things):
    icons = json.loads((ROOT / "tiny_sd" / "pictures" / "icons" / "noto.json").read_text())
    true = [
        in_style(icons["icons"][name], icons["view"], seed)
        for seed, name in enumerate(("house", "fish", "rabbit", "umbrella", "deciduous-tree"))
    ]
    near = style_distances(vae, true, style, 128)
    far = style_distances(vae, [*things, *cat], style, 128)
    assert max(near) < min(far)
    assert sum(near) / len(near) < sum(far) / len(far) / 3


def test_a_true_image_scores_high_and_another_cat_does_not(vae, cat, other_cats, things):
    unseen = [draw_cat(pose, place) for pose, place in ((1, 1), (4, 5), (6, 6), (7, 3), (5, 6), (2, 0))]
    true = subject_scores(vae, unseen, cat, 128)
    assert min(true) > 0.85
    others = subject_scores(vae, [*other_cats, *things], cat, 128)
    assert max(others) < min(true)
    assert sum(others[: len(other_cats)]) / len(other_cats) < 0.8


def test_the_subject_is_found_wherever_it_stands_and_its_colors_matter(vae, cat):
    mirrored = [image.transpose(Image.FLIP_LEFT_RIGHT) for image in cat]
    other_colors = [Image.merge("RGB", image.convert("RGB").split()[::-1]) for image in cat]  # a blue cat
    found, missed = (subject_scores(vae, images, cat, 128) for images in (mirrored, other_colors))
    assert min(found) > 0.85
    assert all(other < same - 0.05 for other, same in zip(missed, found))
    assert sum(missed) / 4 < 0.8


def test_a_picture_is_measured_by_itself(vae, style, cat, things):
    for measure, training in ((style_distances, style[:2]), (subject_scores, cat[:2])):
        together = measure(vae, things[:3], training, 128)
        alone = [measure(vae, [image], training, 128)[0] for image in things[:3]]
        assert together == pytest.approx(alone, rel=1e-3)
    assert torch.tensor(style_distances(vae, style[:1], style[:1], 128)).item() == pytest.approx(0, abs=1e-3)


def test_a_training_image_is_measured_by_the_others(vae, style):
    some = style[:4]
    each = [style_distances(vae, [image], [one for one in some if one is not image], 128)[0] for image in some]
    assert style_distances_among(vae, some, 128) == pytest.approx(each, rel=1e-3)


def test_one_or_two_equal_training_images_are_enough(vae, cat, other_cats):
    for subject in (cat[:1], [cat[0], cat[0]], cat[:2]):
        itself, other = subject_scores(vae, [cat[0], other_cats[0]], subject, 128)
        assert other < itself <= 1 + 1e-5


def test_drift_is_the_share_of_the_way_from_the_class_to_the_subject(vae, cat, other_cats):
    """Nothing where nothing changed, about all where pictures of the subject are drawn, and in between in between."""
    before = other_cats[:4]
    subject = [draw_cat(pose, place, 128) for pose, place in ((1, 1), (4, 5), (6, 6), (7, 3))]
    blends = {
        share: [Image.blend(one, other, share) for one, other in zip(before, subject)] for share in (0, 0.2, 0.5, 1)
    }
    means = {share: sum(drift(vae, before, after, cat, 128)) / 4 for share, after in blends.items()}
    assert means[0] == 0 and means[1] == pytest.approx(1, abs=0.2)
    assert 0.1 < means[0.2] < means[0.5] < means[1] - 0.1
    kept_but_one = drift(vae, before, [*before[:3], subject[3]], cat, 128)
    assert kept_but_one[:3] == [0, 0, 0] and kept_but_one[3] > 0.7


def test_a_class_that_changes_into_something_else_drifts_too(vae, cat, other_cats, things):
    assert min(drift(vae, other_cats[:4], [Image.new("RGB", (128, 128), "black")] * 4, cat, 128)) > 0.5
    assert sum(drift(vae, other_cats[:4], things[:4], cat, 128)) / 4 > 0.5
