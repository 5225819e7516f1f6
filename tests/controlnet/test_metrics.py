"""The metric is honest: perfect on true pictures, low on the wrong ones, and it finds the disc by itself."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import make_canny
from fill50k import TEST_DISCS, RenderedFill50K, load_data
from finetune.data.colors import COLORS
from finetune.data.images import square
from metrics import canny_edges, edge_f1, inside_outline, named_colors, overlap, score, summary
from processes import call
from rendered_discs import Disc, Line, draw, render_condition

DATA = RenderedFill50K("test", 40, resolution=128, min_color_difference=20)
SAMPLES = [DATA[i] for i in range(len(DATA))]


def test_true_pictures_score_one():
    scores = [score(s["image"], s["conditioning_image"], s["text"]) for s in SAMPLES]
    assert summary(scores)["min_iou"] > 0.93
    assert summary(scores)["mean_iou"] > 0.98
    assert max(s.disc_color_difference for s in scores) < 0.5
    assert max(s.background_color_difference for s in scores) < 0.5


def test_pictures_of_other_conditions_score_low():
    shuffled = SAMPLES[1:] + SAMPLES[:1]
    scores = [
        score(other["image"], sample["conditioning_image"], other["text"]) for sample, other in zip(SAMPLES, shuffled)
    ]
    assert summary(scores)["mean_iou"] < 0.4
    assert summary(scores)["share_above_0.8"] < 0.1


def test_wrong_colors_are_seen_though_the_disc_is_in_place():
    shuffled = SAMPLES[1:] + SAMPLES[:1]
    scores = [
        score(sample["image"], sample["conditioning_image"], other["text"]) for sample, other in zip(SAMPLES, shuffled)
    ]
    assert summary(scores)["median_disc_color_difference"] > 20
    assert summary(scores)["median_background_color_difference"] > 20


def test_disc_and_background_with_their_colors_exchanged_do_not_pass():
    sample = SAMPLES[0]
    disc, background = sample["text"].replace(" background", "").split(" circle with ")
    exchanged = f"{background} circle with {disc} background"
    assert score(sample["image"], sample["conditioning_image"], exchanged).iou < 0.5


@pytest.mark.parametrize("kind", ["blank", "noise"])
def test_pictures_without_a_disc_score_low(kind):
    rng = np.random.default_rng(0)
    pixels = np.full((128, 128, 3), 200) if kind == "blank" else rng.integers(0, 255, (128, 128, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    for sample in SAMPLES[:5]:
        assert score(image, sample["conditioning_image"], sample["text"]).iou < 0.5


def test_a_shifted_disc_scores_its_overlap():
    disc, moved = Disc(256, 256, 100), Disc(306, 256, 100)
    image = draw(moved, 512, "RGB", COLORS["white"], (0, COLORS["red"]))
    found = score(image, render_condition(disc), "red circle with white background").iou
    # Two unit discs half a radius apart: overlap over union by the lens formula.
    lens = 2 * np.arccos(0.25) - 0.25 * np.sqrt(4 - 0.25)
    assert found == pytest.approx(lens / (2 * np.pi - lens), abs=0.01)


def test_a_blurred_and_noisy_disc_is_still_found():
    sample = SAMPLES[0]
    noise = np.random.default_rng(0).normal(0, 12, (128, 128, 3))
    blurred = np.asarray(sample["image"].filter(ImageFilter.GaussianBlur(1))) + noise
    image = Image.fromarray(blurred.clip(0, 255).astype(np.uint8))
    assert score(image, sample["conditioning_image"], sample["text"]).iou > 0.9


@pytest.mark.parametrize("disc", TEST_DISCS)
@pytest.mark.parametrize("size", [128, 512])
def test_the_outlines_inside_is_found_also_where_it_leaves_the_frame(disc, size):
    mask = inside_outline(render_condition(disc), (size, size))
    columns, rows = np.meshgrid(*[(np.arange(size) + 0.5) * 512 / size - 0.5] * 2)
    true = (columns - disc.x) ** 2 + (rows - disc.y) ** 2 <= disc.radius**2
    assert (mask & true).sum() / (mask | true).sum() > 0.97


LOOKS = [{}, {"soft": True}, {"inverted": True}, {"jpeg": True}, {"soft": True, "inverted": True, "jpeg": True}]
# Inside the frame, small and large, and cut to a half or a quarter.
PLACES = [Disc(230, 280, 150), Disc(100, 400, 40), Disc(256, 256, 280), Disc(500, 200, 90), Disc(3, 5, 200)]


def disc_of(disc: Disc) -> np.ndarray:
    return np.asarray(draw(disc, 512, "L", 0, (0, 255))) > 0


def as_files_have_it(condition: Image.Image) -> dict[str, Image.Image]:
    """A white outline on black in other modes, and drawn in white or in black on nothing."""
    gray = condition.convert("L")
    found = {mode: condition.convert(mode) for mode in ("L", "RGBA", "LA", "P")}
    for color in ("white", "black"):
        found[color] = Image.new("RGB", condition.size, color)
        found[color].putalpha(gray)
    return found


@pytest.mark.parametrize("resolution", [64, 128, 512])
@pytest.mark.parametrize("look", LOOKS, ids=lambda look: " ".join(look) or "hard")
def test_the_disc_is_found_whatever_the_outline_looks_like(look, resolution):
    for disc, width in itertools.product(PLACES, (1, 2, 3, 5, 8)):
        condition = square(render_condition(disc, line=Line(width, **look)), resolution)
        assert overlap(inside_outline(condition, (512, 512)), disc_of(disc)) > 0.97, (disc, width)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "white", "black"])
def test_the_disc_is_found_in_every_mode_and_on_a_transparent_ground(mode):
    for disc in TEST_DISCS:
        condition = as_files_have_it(render_condition(disc))[mode]
        assert overlap(inside_outline(condition, (512, 512)), disc_of(disc)) > 0.98


def test_a_thick_line_has_the_disc_of_a_thin_one():
    for disc in TEST_DISCS:
        thin, thick = (inside_outline(render_condition(disc, line=Line(width)), (512, 512)) for width in (2, 8))
        assert overlap(thin, thick) > 0.99


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (96, 160), (1000, 1000)])
def test_the_disc_is_found_in_conditions_and_pictures_of_any_size(shape):
    width, height = shape
    for x, y, radius in ((0.5, 0.5, 0.3), (0.3, 0.6, 0.2), (0.1, 0.4, 0.45)):
        x, y, radius = x * width, y * height, radius * min(shape)
        condition = Image.new("RGB", shape)
        box = [x - radius - 1, y - radius - 1, x + radius, y + radius]
        ImageDraw.Draw(condition).ellipse(box, outline="white", width=2)
        for size in (shape, (128, 128), (2 * width, height), (96, 32)):
            columns, rows = ((np.arange(n) + 0.5) / n * side for n, side in zip(size, shape))
            true = (columns[None] - x) ** 2 + (rows[:, None] - y) ** 2 <= radius**2
            assert overlap(inside_outline(condition, size), true) > 0.93, (size, x, y)


GRAYS = [("black", "white"), ("white", "black")]


@pytest.mark.parametrize("quality", [20, 50, 95])
@pytest.mark.parametrize(("size", "colors"), [(96, GRAYS), (512, [*GRAYS, ("navy", "gold"), ("gray", "red")])])
def test_the_disc_is_found_in_a_jpeg_file(size, colors, quality):
    for disc, (ground, ink) in itertools.product(PLACES, colors):
        gray = square(render_condition(disc), size).convert("L")
        condition = Image.composite(*(Image.new("RGB", gray.size, color) for color in (ink, ground)), gray)
        file = io.BytesIO()
        condition.save(file, "JPEG", quality=quality)
        assert overlap(inside_outline(Image.open(file), (512, 512)), disc_of(disc)) > 0.95, (disc, ink)


def test_an_empty_condition_is_refused():
    noise = np.random.default_rng(0).integers(250, 256, (64, 64), dtype=np.uint8)
    for empty in (Image.new("RGB", (64, 64)), Image.new("RGBA", (64, 64)), Image.fromarray(noise)):
        with pytest.raises(ValueError, match="no outline"):
            inside_outline(empty, (64, 64))


@pytest.mark.filterwarnings("error")
def test_scores_are_numbers_whatever_is_drawn_and_whatever_the_condition_shows():
    rng = np.random.default_rng(0)
    line, square_ = Image.new("L", (64, 64)), Image.new("L", (64, 64))
    ImageDraw.Draw(line).line([0, 30, 63, 30], fill=255)
    ImageDraw.Draw(square_).rectangle([0, 0, 63, 20], fill=255)
    noise, points = rng.integers(0, 256, (64, 64)), np.where(rng.random((64, 64)) < 0.002, 255, 0)
    conditions = [line, square_, *(Image.fromarray(a.astype(np.uint8)) for a in (noise, points))]
    images = [Image.new("RGB", (64, 64)), Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))]
    for condition, image in itertools.product(conditions, images):
        found = score(image, condition, "red circle with blue background")
        assert all(np.isfinite(value) for value in vars(found).values()) and 0 <= found.iou <= 1


def test_prompts_are_read_with_and_without_articles():
    for prompt in ("sea green circle with a light cyan background", "a sea green circle with light cyan background"):
        disc, background = named_colors(prompt)
        assert disc[1] < -20 and background[0] > 95  # Lab: clearly green, and nearly white
    assert named_colors("a photo of a cat") is None
    assert named_colors("reddish circle with white background") is None


def drawing(seed: int) -> Image.Image:
    """Some bars at random, 128 px."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", (128, 128), "navajowhite")
    for _ in range(4):
        left, top = rng.integers(5, 80, 2)
        ImageDraw.Draw(image).rectangle([left, top, left + rng.integers(10, 40), top + rng.integers(10, 40)], "navy")
    return image


def test_edges_of_the_picture_itself_score_one_and_of_others_low():
    pictures = [drawing(i) for i in range(6)]
    edges = [canny_edges(picture) for picture in pictures]
    assert all(edge_f1(picture, edge) == 1 for picture, edge in zip(pictures, edges))
    assert np.mean([edge_f1(picture, edge) for picture, edge in zip(pictures, edges[1:])]) < 0.5


def test_edges_too_many_or_too_few_cost_the_same_score():
    few, many = Image.new("RGB", (128, 128), "white"), Image.new("RGB", (128, 128), "white")
    for image, boxes in ((few, [(20, 20, 60, 60)]), (many, [(20, 20, 60, 60), (80, 80, 120, 120)])):
        for box in boxes:
            ImageDraw.Draw(image).rectangle(box, "black")
    missing, extra = edge_f1(few, canny_edges(many)), edge_f1(many, canny_edges(few))
    assert missing == pytest.approx(2 / 3, abs=0.02) and extra == pytest.approx(2 / 3, abs=0.02)


def test_colors_of_the_same_brightness_have_an_edge():
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, :32], halves[:, 32:] = (255, 0, 0), (0, 130, 0)  # both are 76 in gray
    found = np.asarray(canny_edges(Image.fromarray(halves))) > 0
    assert found[:, 30:34].any(1).mean() > 0.9 and not found[:, :28].any()


def test_a_flat_picture_has_no_edges():
    flat = Image.new("RGB", (64, 64), "red")
    assert edge_f1(flat, canny_edges(drawing(0))) == 0
    assert edge_f1(flat, canny_edges(flat)) == 1


def test_edges_become_a_data_set_that_training_reads(tmp_path):
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(3):
        drawing(i).save(tmp_path / "pictures" / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}))
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(rows))
    edges = tmp_path / "edges"
    flags = ["--dataset_name", str(tmp_path / "pictures"), "--resolution", "128", "--output_dir", str(edges)]
    status, said = call(make_canny.main, *flags)
    assert status == 0, said
    data = load_data(str(edges), "image", "conditioning_image", "text", None)
    assert [data[i]["text"] for i in range(3)] == ["picture 0", "picture 1", "picture 2"]
    assert all(edge_f1(data[i]["image"], data[i]["conditioning_image"]) == 1 for i in range(3))
    status, said = call(make_canny.main, *flags)
    assert status == 1 and "is there already" in said and "Traceback" not in said
