"""The measures of Task 2's sample data say of true pictures that they are true, and of no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy.ndimage import gaussian_filter

from finetune.model.base import load_part
from processes import BASE, ROOT, call, run_python
from tiny_sd.measures import lines_and_inks, marks, round_trip
from tiny_sd.measures.lines_and_inks import SAME, inks_arrive, line_differences, nearest_inks
from tiny_sd.measures.marks import MARKS, MOST, marks_of, sample_module
from tiny_sd.pictures.icons import STYLES, icon, load_subjects
from tiny_sd.pictures.places import PLACES
from tiny_sd.pictures.scenes import scene
from true_prints import true_prints

SAMPLES = ROOT / "task_2_lora" / "sample_data"
cat, linocut = sample_module("cat"), sample_module("linocut")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_part(AutoencoderKL, BASE, "vae")


def back(vae: AutoencoderKL, image: Image.Image) -> Image.Image:
    """Through an autoencoder's latents at 128 px: the best that a model on them can draw."""
    pixels = torch.from_numpy(np.array(image.resize((128, 128), Image.BOX), np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels / 127.5 - 1).latent_dist.mode()).sample[0].clamp(-1, 1)
    return Image.fromarray(((decoded.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())


def blurred(image: Image.Image, pixels: float) -> Image.Image:
    return Image.fromarray(gaussian_filter(np.asarray(image.resize((128, 128), Image.BOX)), (pixels, pixels, 0)))


def ground(rng: np.random.Generator) -> Image.Image:
    """A place that the base knows, or any plain colour."""
    if rng.random() < 0.6:
        return PLACES[str(rng.choice(list(PLACES)))](rng)
    return Image.new("RGB", (512, 512), tuple(int(value) for value in rng.integers(0, 256, 3)))


def cat_elsewhere(pose: int, rng: np.random.Generator) -> Image.Image:
    """The cat on a ground that the sample pictures do not have, 0.8 to 1.2 times as large and moved, its head whole."""
    drawing = cat.rasterise(cat.POSES[pose]((cat.GREEN, cat.BLUE)), 512, 512)
    side = round(512 * rng.uniform(0.8, 1.0 if cat.POSES[pose] is cat.close_up else 1.2))
    picture, most = ground(rng), max(0, 512 - side) // 2
    corner = rng.integers(-most, most + 1, 2) + (512 - side) // 2
    drawing = drawing.resize((side, side), Image.BICUBIC)
    picture.paste(drawing, (int(corner[0]), max(0, int(corner[1]))), drawing)
    return picture.resize((128, 128), Image.BOX)


def number_of_marks(image: Image.Image) -> int:
    return sum(marks_of(image).values())


def test_the_sample_pictures_have_all_marks(vae):
    pictures = [Image.open(path).convert("RGB") for path in sorted((SAMPLES / "dreambooth-cat").glob("*.png"))]
    assert len(pictures) == 4
    for picture in pictures:
        for version in (picture, blurred(picture, 1.5), back(vae, picture)):
            assert all(marks_of(version).values()), marks_of(version)


def test_a_true_cat_in_any_pose_and_place_has_all_marks():
    for pose in range(len(cat.POSES)):
        for place in range(pose % 2, len(cat.PLACES), 2):
            assert all(marks_of(cat.cat(pose, place, 128)).values()), (pose, place)


def test_a_true_cat_of_another_size_elsewhere_keeps_its_marks(vae):
    rng = np.random.default_rng(0)
    cats = [cat_elsewhere(i % len(cat.POSES), rng) for i in range(16)]
    for version in (lambda image: image, lambda image: blurred(image, 1.5), lambda image: back(vae, image)):
        counts = [number_of_marks(version(image)) for image in cats]
        assert min(counts) >= MOST and np.mean(counts) > 5.8, counts


def test_other_animals_have_at_most_two():
    rng = np.random.default_rng(1)
    words = {"cat", "lion", "tiger", "fox", "dog", "rabbit", "bear", "cow", "monkey", "mouse", "panda", "wolf"}
    counts = {}
    for style in STYLES:
        for name, subject in load_subjects().items():
            for number in range(1 if words & set(subject.split()) else 0):
                picture, side = ground(rng), int(rng.integers(4, 9)) * 64
                drawing = icon(style, name, 512).resize((side, side), Image.BICUBIC)
                picture.paste(drawing, tuple(int(place) for place in rng.integers(0, 513 - side, 2)), drawing)
                counts[style, subject, number] = number_of_marks(picture)
    assert len(counts) > 25 and max(counts.values()) <= 2, {key: count for key, count in counts.items() if count > 2}


def test_pictures_without_a_cat_have_at_most_two():
    shares = {"icon_share": 0.5, "print_share": 0.2, "place_share": 0.5}
    assert max(number_of_marks(scene(10_000_000 + i, 128, **shares)[0]) for i in range(60)) <= 2
    assert number_of_marks(Image.new("RGB", (128, 128), "orange")) == 0


@pytest.mark.parametrize(
    "colors, missing",
    [
        ({"GREEN": cat.BLUE, "BLUE": cat.GREEN}, {"green eye", "blue eye"}),
        ({"GREEN": cat.BLUE}, {"green eye"}),
        ({"BLUE": cat.GREEN}, {"blue eye"}),
        ({"GREEN": "#6b4a2b", "BLUE": "#6b4a2b"}, {"green eye", "blue eye"}),
        ({"RED": cat.TURQUOISE}, {"scarf"}),
        ({"TURQUOISE": cat.RED}, {"scarf"}),
        ({"WHITE": cat.FUR}, {"white blaze"}),
        ({"BROWN": cat.FUR}, {"dark ears"}),
        ({"PINK": cat.BLACK}, {"pink nose"}),
    ],
)
def test_what_is_not_there_is_missed_and_nothing_else(colors, missing, monkeypatch):
    marks_of(Image.new("RGB", (128, 128)))  # what true heads look like is drawn before the colours change
    for name, color in colors.items():
        monkeypatch.setattr(cat, name, color)
    pictures = [cat.cat(pose, place, 128) for pose, place in ((0, 0), (3, 1), (5, 4), (6, 6))]
    monkeypatch.undo()
    for picture in pictures:
        assert {mark for mark, there in marks_of(picture).items() if not there} == missing


def test_a_mirrored_cat_has_its_eyes_exchanged():
    mirrored = cat.cat(0, 0, 128).transpose(Image.FLIP_LEFT_RIGHT)
    assert {mark for mark, there in marks_of(mirrored).items() if not there} == {"green eye", "blue eye"}


@pytest.fixture(scope="module")
def prints() -> list[Image.Image]:
    return list(true_prints().values())


@pytest.fixture(scope="module")
def prints_back(prints, vae) -> list[Image.Image]:
    return [back(vae, image) for image in prints]


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """What the base draws without a LoRA, flat and shaded, on plain grounds and in places."""
    return [scene(10_000_000 + i, 128, 1.0, place_share=0.5)[0] for i in range(40)]


def test_lines_of_true_prints_are_theirs_and_those_of_drawings_are_not(prints, prints_back, drawings):
    for pictures in (prints, prints_back):
        share, directions = line_differences(pictures)
        assert abs(share) < 0.2 and directions < 0.2
    share, directions = line_differences(drawings)
    assert share < -0.5 and directions > 0.3


def test_other_prints_have_other_lines(prints):
    """Mirrored, the hatching runs the other way: as many edges, other directions."""
    share, directions = line_differences([image.transpose(Image.FLIP_LEFT_RIGHT) for image in prints])
    assert abs(share) < 0.2 and directions > 0.3


def test_inks_arrive_in_true_prints_only(prints, prints_back, drawings):
    assert np.mean([inks_arrive(image) for image in prints]) == 1
    assert np.mean([inks_arrive(image) for image in prints_back]) >= 0.8
    assert np.mean([inks_arrive(image) for image in drawings]) < 0.1
    of_base = [scene(10_000_000 + i, 128, print_share=1.0)[0] for i in range(40)]
    assert np.mean([inks_arrive(image) for image in of_base]) < 0.1, "prints in other inks"


def test_three_shades_of_paper_are_no_inks():
    paper = np.full((128, 128, 3), linocut.PAPER, np.uint8)
    paper[:40] -= 6
    paper[80:] -= 12
    assert not inks_arrive(Image.fromarray(paper))
    halves = np.full((128, 128, 3), linocut.PAPER, np.uint8)
    halves[:50], halves[50:80] = linocut.INK, linocut.CORAL
    assert inks_arrive(Image.fromarray(halves))
    assert [ink for ink, difference in nearest_inks(Image.fromarray(halves)) if difference < SAME] == [
        "ink", "paper", "coral"
    ]  # fmt: skip


def printed(program: ModuleType, folder: Path) -> str:
    status, said = call(program.main, str(folder))
    assert status == 0, said
    return said


def test_the_programs_print_tables_of_a_folder(tmp_path):
    for name in ("0", "1"):
        shutil.copy(SAMPLES / "dreambooth-cat" / f"{name}.png", tmp_path)
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "2.png")
    prompts = {f"{i}.png": f"a sks cat {where}" for i, where in enumerate(("in a garden", "on a beach", "in snow"))}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    lines = printed(marks, tmp_path).splitlines()
    assert lines[1].split() == ["0.png", *["x"] * len(MARKS), "6", *"a sks cat in a garden".split()]
    assert lines[3].split()[:8] == ["2.png", *["."] * len(MARKS), "0"]
    assert lines[-1] == "at least 5 of 6 marks: 2 of 3 pictures (67%)"

    lines = printed(lines_and_inks, SAMPLES / "artistic-custom" / "train").splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["car.png", "cat.png", "dog.png", "hat.png"]
    assert lines[-1] == "three main colours that are the print's: 100% of pictures"


def test_the_autoencoder_is_measured_by_one_command(monkeypatch, tmp_path):
    held_out = round_trip.held_out
    few = {"scenes": 3, "doodles": 3, "style": 4, "cat": 4}
    monkeypatch.setattr(
        round_trip, "held_out", lambda number: {name: images[: few[name]] for name, images in held_out(3).items()}
    )
    status, said = call(round_trip.main, "--output", str(tmp_path / "new" / "rows.png"))
    assert status == 0, said
    names, errors = (line.split() for line in said.splitlines()[-2:])
    assert names[-4:] == ["scenes", "doodles", "style", "cat"]
    assert all(0.005 < float(error) < 0.08 for error in errors[-4:])
    assert Image.open(tmp_path / "new" / "rows.png").size == (12 * 128, 2 * 128)


@pytest.mark.parametrize("program", ["marks", "lines_and_inks"])
def test_the_programs_start_from_the_root(program):
    environment = {"PYTHONPATH": "."}
    run = run_python(f"tiny_sd/measures/{program}.py", "--help", folder=ROOT, environment=environment)
    assert run.returncode == 0 and "folder" in run.stdout, run.stderr
