"""Pictures and conditions are what one sees: transparency, colour profiles, EXIF, and the shapes of pairs."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
from torch.utils.data import DataLoader

import fill50k
from fill50k import load_data
from finetune.data.cache import Samples
from finetune.data.images import condition_to_rgb, open_condition, open_image, pair_to_rgb, to_rgb
from folders import fill, list_in, picture


def test_a_picture_is_laid_on_white():
    hidden = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    hidden.putpixel((1, 0), (0, 0, 255, 128))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = bytes([0, 128])
    keyed = Image.new("RGB", (2, 1), "blue")
    keyed.putpixel((0, 0), (255, 0, 0))
    keyed.info["transparency"] = (255, 0, 0)
    gray = Image.new("LA", (2, 1), (0, 0))
    gray.putpixel((1, 0), (0, 128))
    for image, second in ((hidden, (127, 127, 255)), (palette, (127, 127, 255)), (gray, (127, 127, 127))):
        assert to_rgb(image, "x").getpixel((0, 0)) == (255, 255, 255)
        assert np.abs(np.subtract(to_rgb(image, "x").getpixel((1, 0)), second)).max() <= 1
    assert [to_rgb(keyed, "x").getpixel((i, 0)) for i in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_a_picture_that_is_too_large_is_named_as_such(tmp_path, monkeypatch):
    picture(0).save(tmp_path / "map.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match="map.png has too many pixels .*: make it smaller"):
        open_image(tmp_path / "map.png", "map.png")


def ring(color: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (*color[:3], 0))
    ImageDraw.Draw(image).ellipse([8, 8, 50, 50], outline=color, width=3)
    return image


@pytest.mark.parametrize(
    "color, ground", [((0, 0, 0, 255), "white"), ((255, 255, 255, 255), "black"), ((250, 250, 240, 255), "black"),
                      ((255, 0, 0, 255), "white")],
)  # fmt: skip
def test_a_conditions_lines_are_kept_and_it_is_said(tmp_path, capsys, color, ground):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "1.png")
    ring(color).save(tmp_path / "c.png")
    list_in(tmp_path, {"file_name": "1.png", "conditioning_image_file_name": "c.png", "text": "a"})
    data = load_data(str(tmp_path))
    for condition in (data[0]["conditioning_image"], data.conditioning_image(0)):
        assert condition.getpixel((0, 0)) == ((255,) * 3 if ground == "white" else (0,) * 3)
        assert condition.getpixel((29, 9)) == color[:3]
    said = capsys.readouterr().out
    assert said.count("Note:") == 1 and "c.png" in said and f"laid on {ground}" in said


def with_block(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    ImageDraw.Draw(image).rectangle([26, 26, 33, 33], fill=color)
    return image


def rings(inner: tuple[int, int, int], outer: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse([8, 8, 50, 50], outline=inner, width=3)
    ImageDraw.Draw(image).ellipse([0, 0, 62, 62], outline=outer, width=2)
    return image


@pytest.mark.parametrize(
    "condition, ground",
    [
        (rings((255, 255, 255), (255, 0, 0)), "black"),
        (rings((0, 0, 0), (255, 0, 0)), "white"),
        (rings((255, 255, 255), (0, 0, 0)), "gray"),
        (rings((210, 210, 210), (40, 40, 40)), "gray"),
        (with_block(ring((255, 255, 255, 255)), (0, 0, 0)), "gray"),
        (with_block(rings((255, 255, 255), (0, 0, 0)), (128, 128, 128)), "magenta"),
        (ring((255, 255, 255, 100)), "black"),
    ],
)
def test_every_colour_of_a_condition_is_kept(capsys, condition, ground):
    laid = np.asarray(condition_to_rgb(condition, "c.png")).astype(int)
    assert f"c.png, are laid on {ground}." in capsys.readouterr().out
    visible = np.asarray(condition)[..., 3] > 0
    assert np.abs(laid[visible] - laid[63, 63]).max(1).min() > 64, "each differs from the ground"


def test_a_few_dots_of_a_condition_are_not_lost_either():
    condition = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    for place in ((3, 3), (20, 30), (50, 9)):
        condition.putpixel(place, (255, 255, 255, 255))
    assert condition_to_rgb(condition, "c.png").getextrema() == ((0, 255),) * 3


def test_a_condition_that_no_ground_keeps_is_refused():
    condition = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 4), np.uint8))
    with pytest.raises(ValueError, match="c.png, a condition, has .* so many colours that some would vanish on any"):
        condition_to_rgb(condition, "c.png")
    condition.putalpha(254)  # where nothing is transparent, no ground is seen
    seen = np.asarray(condition_to_rgb(condition, "c.png")).astype(int)
    assert np.abs(seen - np.asarray(condition)[..., :3]).max() <= 1


def test_conditions_without_any_line_to_see_are_refused():
    hidden = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    hidden.putpixel((3, 3), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="c.png, a condition, is transparent all over"):
        condition_to_rgb(hidden, "c.png")


def test_lines_that_are_cut_out_of_a_ground_are_kept():
    """A picture in which black means transparent: on black the lines are seen again."""
    for mode, paper in (("RGB", (255, 255, 255)), ("L", 255)):
        condition = Image.new(mode, (8, 8), paper)
        condition.putpixel((3, 3), (0, 0, 0) if mode == "RGB" else 0)
        condition.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
        laid = condition_to_rgb(condition, "c.png")
        assert [laid.getpixel(place) for place in ((0, 0), (3, 3))] == [(255,) * 3, (0,) * 3]


def test_one_draws_with_the_condition_that_trainings_see(tmp_path):
    ring((255, 255, 255, 255)).save(tmp_path / "c.png")
    seen = condition_to_rgb(ring((255, 255, 255, 255)), "c.png")
    assert np.array_equal(np.asarray(open_condition(tmp_path / "c.png")), np.asarray(seen))
    assert seen.getextrema() == ((0, 255),) * 3


def test_it_is_said_once_by_all_workers_and_epochs(tmp_path, capfd):
    for i in range(4):
        ring((255, 255, 255, 255)).save(tmp_path / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "conditioning_image_file_name": f"{i}.png", "text": "a"} for i in range(2)]
    rows = [{**row, "conditioning_image_file_name": f"{i + 2}.png"} for i, row in enumerate(rows)]
    data = Samples(load_data(str(list_in(tmp_path, *rows))), 64, None)
    for _ in range(2):
        list(DataLoader(data, num_workers=2))
    assert capfd.readouterr().out.count("laid on black") == 1


def test_a_picture_that_is_its_own_condition_is_a_picture(tmp_path, capsys):
    """As make_canny.py reads them."""
    ring((255, 255, 255, 255)).save(tmp_path / "a.png")
    data = load_data(str(list_in(tmp_path, {"file_name": "a.png", "text": "x"})), conditioning_image_column="image")
    assert data[0]["image"].getextrema() == data[0]["conditioning_image"].getextrema() == ((255, 255),) * 3
    assert not capsys.readouterr().out


def test_opaque_conditions_stay_as_they_are(capsys):
    for color in ("black", "white"):
        image = Image.new("RGBA", (8, 8), color)
        image.putpixel((3, 3), (9, 9, 9, 255))
        assert np.array_equal(np.asarray(condition_to_rgb(image, "x")), np.asarray(image)[..., :3])
    assert not capsys.readouterr().out


def exchanged() -> bytes:
    """sRGB's profile with red and green exchanged: whoever applies it is seen to."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    for i in range(count):
        entry = 132 + 12 * i
        name = bytes(profile[entry : entry + 4])
        profile[entry : entry + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_colour_profiles_are_applied():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    plain = open_image(saved(red), "x").getpixel((0, 0))
    assert plain == (255, 0, 0)
    for image in (red, red.convert("P"), red.convert("RGBA")):
        found = open_image(saved(image, icc_profile=exchanged()), "x").getpixel((0, 0))
        assert np.abs(np.subtract(found, (0, 255, 0))).max() <= 2
    gray = open_image(saved(Image.new("L", (4, 4), 100), icc_profile=exchanged()), "x").getpixel((0, 0))
    assert np.abs(np.subtract(gray, 100)).max() <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(open_image(saved(picture(0), icc_profile=srgb), "x")), np.asarray(picture(0))), (
        "sRGB itself changes nothing"
    )


def test_a_profile_that_does_not_fit_is_said_and_left_out(capsys):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    for i, (image, format, profile) in enumerate(
        [(picture(0), "PNG", b"no profile"), (picture(0), "PNG", lab), (cmyk, "TIFF", exchanged())]
    ):
        found = open_image(saved(image, format, icc_profile=profile), f"{i}.png")
        assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
        assert f"{i}.png has a colour profile that does not fit" in capsys.readouterr().out


def test_broken_exif_data_do_not_stop_a_training(capsys):
    found = open_image(saved(picture(0), exif=b"Exif\0\0no TIFF header"), "a.png")
    assert np.array_equal(np.asarray(found), np.asarray(picture(0)))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.open(io.BytesIO(saved(image, exif=exif)))


def test_a_picture_and_its_condition_have_one_shape():
    wide, same, cut = Image.new("RGB", (192, 128)), Image.new("RGB", (96, 64)), Image.new("RGB", (128, 128))
    assert [image.size for image in pair_to_rgb(wide, same, "a", "c")] == [(192, 128), (96, 64)]
    pair_to_rgb(Image.new("RGB", (1000, 667)), Image.new("RGB", (512, 342)), "a", "c")  # rounded
    for other in (cut, Image.new("RGB", (128, 192)), Image.new("RGB", (192, 120))):
        with pytest.raises(ValueError, match="a.png and its condition c.png have different shapes, 192 x 128 and"):
            pair_to_rgb(wide, other, "a.png", "c.png")


def test_exif_that_says_nothing_turns_nothing():
    wide = Image.new("RGB", (192, 128))
    for unknown in (0, 1, 9):
        assert pair_to_rgb(turned(wide, unknown), wide, "a", "c")[0].size == (192, 128)


def test_exif_that_turns_only_one_of_a_pair():
    wide, high = Image.new("RGB", (192, 128)), Image.new("RGB", (128, 192))
    assert pair_to_rgb(turned(wide, 6), high, "a", "c")[0].size == (128, 192)  # the shapes say: it is upright
    pair_to_rgb(turned(wide, 6), turned(wide, 6), "a", "c")
    for one, other in ((turned(wide, 6), wide), (wide, turned(wide, 6))):
        with pytest.raises(ValueError, match="different shapes.*EXIF turns only one of them"):
            pair_to_rgb(one, other, "a", "c")
    for one, other in ((turned(wide, 3), wide), (Image.new("RGB", (9, 9)), turned(Image.new("RGB", (9, 9)), 6))):
        with pytest.raises(ValueError, match="EXIF entry turns only one of them"):
            pair_to_rgb(one, other, "a", "c")


def test_a_pair_of_different_shapes_is_refused_before_it_is_trained_on(tmp_path):
    Image.new("RGB", (192, 128)).save(tmp_path / "a.png")
    Image.new("RGB", (128, 128)).save(tmp_path / "c.png")
    list_in(tmp_path, {"file_name": "a.png", "conditioning_image_file_name": "c.png", "text": "x"})
    with pytest.raises(ValueError, match="a.png and its condition .*c.png have different shapes"):
        Samples(load_data(str(tmp_path)), 64, None)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation of edges reads what the training read


def test_edges_are_evaluated_by_the_columns_that_were_trained_on(tmp_path, monkeypatch):
    file = Path(fill50k.__file__).with_name("evaluate.py")  # Task 2 has one of this name, too
    spec = importlib.util.spec_from_file_location("evaluate_controlnet", file)
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    drawn_for = []

    def generate(pipeline, conditions, prompts, **settings):
        drawn_for.extend(prompts)
        return [Image.new("RGB", (64, 64)) for _ in prompts]

    monkeypatch.setattr(evaluate, "generate", generate)
    fill(tmp_path / "data", "a.png", "edges/a.png", "b.png", "edges/b.png")
    rows = [{"photo": f"{name}.png", "edges_file_name": f"edges/{name}.png", "label": name} for name in "ab"]
    evaluate.evaluate_edges(
        pipeline=None,
        controlnet=str(tmp_path / "controlnet"),
        folder=str(list_in(tmp_path / "data", *rows)),
        columns=("photo", "edges", "label"),
        num_conditions=1,
        settings={},
        output_dir=tmp_path / "evaluation",
    )
    assert drawn_for == ["b", "b"], "the last one, without ControlNet and with"
    condition = Image.open(tmp_path / "evaluation" / "conditions" / "0.png")
    assert np.array_equal(np.asarray(condition), np.asarray(Image.open(tmp_path / "data" / "edges" / "b.png")))
