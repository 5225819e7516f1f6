"""Folders mean what they hold, for every training and whatever their files are called; pictures are what one sees."""

from __future__ import annotations

import csv
import io
import json
import sys
import threading
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image, ImageCms, ImageDraw
from torch.utils.data import DataLoader

import class_images
import finetune.notes
from class_images import draw_class_images
from data import CaptionedImages, SubjectImages, training_images
from fill50k import load_data
from finetune.cache import Samples
from finetune.files import Archive
from finetune.images import condition_to_rgb, open_image, pair_to_rgb, to_rgb
from finetune.setup import fail_clearly


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(finetune.notes, "_said", set())


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))


def fill(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    return folder


def list_in(folder: Path, *rows: dict, encoding: str = "utf-8") -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding=encoding)
    return folder


def style(folder: Path, **columns: str) -> CaptionedImages:
    return CaptionedImages(None, str(folder), columns.get("image", "image"), columns.get("text", "text"))


def style_texts(folder: Path) -> list[str]:
    return style(folder).captions


def controlnet_texts(folder: Path) -> list[str]:
    data = load_data(str(folder), conditioning_image_column="image")
    return [data[i]["text"] for i in range(len(data))]


def subject_texts(folder: Path) -> list[str]:
    return [prompt for prompt in SubjectImages(folder, "sks", with_captions=True).prompts if prompt != "sks"]


every_training = pytest.mark.parametrize("texts_of", [style_texts, controlnet_texts, subject_texts])

# ---------------------------------------------------------------------------------------------------------------------
# What is in a folder


@every_training
@pytest.mark.parametrize(
    "folder, names",
    [
        ("pictures", ["cat.png", "dog.png", "photo of a train.png"]),
        ("pictures", ["a.png", "crash test.png", "test.png"]),
        ("pictures", ["a.png", "test/1.png", "validation/2.png"]),
        ("photos [2024] *", ["a.png", "b [1].png", "c?.png"]),
        ("test", ["train.PNG", "été.png", "日本.png"]),
    ],
)
def test_names_change_nothing(tmp_path, texts_of, folder, names):
    rows = [{"file_name": name, "text": f"text of {name}"} for name in names]
    assert sorted(texts_of(list_in(fill(tmp_path / folder, *names), *rows))) == sorted(row["text"] for row in rows)


@every_training
def test_each_line_is_a_sample(tmp_path, texts_of):
    rows = [{"file_name": name, "text": text} for name, text in (("a.png", "1"), ("b.png", "2"), ("a.png", "3"))]
    assert sorted(texts_of(list_in(fill(tmp_path, "a.png", "b.png"), *rows))) == ["1", "2", "3"]


@every_training
def test_captions_are_text_whatever_they_look_like(tmp_path, texts_of):
    texts = ["2024-01-01", "2024-01-02", "7", "null", "a cat\u2028in \x85snow"]
    names = [f"{i}.png" for i in range(5)]
    fill(tmp_path, *names)
    list_in(tmp_path, *({"file_name": name, "text": text} for name, text in zip(names, texts)), encoding="utf-8-sig")
    assert texts_of(tmp_path) == texts


@every_training
@pytest.mark.parametrize("written", ["./sub/e\u0301.png", "sub\\\u00e9.png", "sub/../sub/\u00e9.png"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_are_found_as_any_system_writes_them(tmp_path, texts_of, written, form):
    fill(tmp_path, unicodedata.normalize(form, "sub/\u00e9.png"))
    picture(0).save(tmp_path / "other.png")
    list_in(tmp_path, {"file_name": written, "text": "found"})
    assert texts_of(tmp_path) == ["found"]


@every_training
def test_a_column_called_image_is_not_taken_for_the_picture(tmp_path, texts_of):
    list_in(fill(tmp_path, "a.png"), {"file_name": "a.png", "image": "a portrait", "text": "found"})
    assert texts_of(tmp_path) == ["found"]
    list_in(tmp_path, {"image": "a.png", "text": "found"})
    assert texts_of(tmp_path) == ["found"]


def write_csv(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(folder: Path, rows: list[dict[str, str]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")


def write_texts(folder: Path, rows: list[dict[str, str]]) -> None:
    for row in rows:
        (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n", encoding="utf-8-sig")


@every_training
@pytest.mark.parametrize("write", [write_csv, write_parquet, write_texts])
def test_captions_in_other_files(tmp_path, texts_of, write):
    rows = [{"file_name": "a.png", "text": 'a "red" cat, in snow'}, {"file_name": "sub/b.png", "text": "2024-01-01"}]
    write(fill(tmp_path, "a.png", "sub/b.png"), rows)
    assert texts_of(tmp_path) == [row["text"] for row in rows]


def test_of_several_listings_the_first_counts_and_it_is_said(tmp_path, capsys):
    fill(tmp_path, "a.png", "b.png", "c.png")
    write_texts(tmp_path, [{"file_name": "a.png", "text": "by txt"}])
    assert style_texts(tmp_path) == ["by txt"]
    assert "2 pictures of" in capsys.readouterr().out
    write_parquet(tmp_path, [{"file_name": "a.png", "text": "by parquet"}])
    assert style_texts(tmp_path) == ["by parquet"]
    write_csv(tmp_path, [{"file_name": "a.png", "text": "by csv"}])
    assert style_texts(tmp_path) == ["by csv"]
    list_in(tmp_path, {"file_name": "a.png", "text": "by jsonl"})
    assert style_texts(tmp_path) == ["by jsonl"]
    last = capsys.readouterr().out
    assert "those of metadata.jsonl; not read: metadata.csv, metadata.parquet, a.txt." in last
    assert "2 pictures of" in last and "no line in metadata.jsonl and are left out: b.png, c.png." in last


def test_pictures_without_a_line_are_named(tmp_path, capsys):
    fill(tmp_path, *(f"{i}.png" for i in range(8)), "edges/0.png", ".ipynb_checkpoints/0.png")
    list_in(tmp_path, {"file_name": "0.png", "edges_file_name": "edges/0.png", "text": "x"})
    for data in (style(tmp_path), load_data(str(tmp_path), conditioning_image_column="edges")):
        assert len(data) == 1
    said = capsys.readouterr().out
    assert said.count("Note:") == 1, "the same is said once"
    assert "7 pictures of" in said and said.endswith("1.png, 2.png, 3.png, 4.png, 5.png and 2 more.\n")


@pytest.mark.parametrize(
    "listed, read",
    [
        (("train", "test"), {"train"}),
        (("train/a", "test"), {"train/a"}),
        (("cats", "train"), {"cats", "train"}),
        (("test",), {"test"}),
        (("", "sub"), {""}),
        (("one/two", "three"), {"one/two", "three"}),
        (("dev/train", "dev/test"), {"dev/train"}),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_listings_in_folders_below(tmp_path, capsys, listed, read, zipped):
    path = tmp_path / "data"
    for folder in listed:
        list_in(fill(path / folder, "a.png"), {"file_name": "a.png", "text": folder})
    if zipped:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for file in path.rglob("*.*"):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "data.zip"
    assert set(style_texts(path)) == read
    assert ("not read" in capsys.readouterr().out) == (len(read) < len(listed))


@every_training
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.csv", b'file_name,text\na.png,"a cat\nb.png,a dog\n', "line 3 is not valid CSV"),
        ("metadata.csv", b"file_name,text\na.png,a cat, in snow\n", "line 2 has not as many fields"),
        ("metadata.csv", b"file_name,text\na.png\n", "line 2 has not as many fields"),
        ("metadata.csv", b"file_name;text\na.png;a cat\n", "line 2 has no column 'image', only file_name;text"),
        ("metadata.csv", "file_name,text\n".encode("utf-16"), "is not UTF-8 text.*save it as UTF-8"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 7}', "line 1: 'text' must be text, not int: 7"),
        ("metadata.jsonl", b'{"file_name": "b.png", "text": ""}', "line 1 names .*b.png, which is not there"),
        ("metadata.jsonl", b'{"file_name": "a.png"}', "line 1 has no column 'text', only file_name"),
        ("metadata.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, texts_of, name, content, message):
    fill(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"(?s){name}.*{message}" if name not in message else message
    ):
        texts_of(tmp_path)


def test_the_evaluation_sees_the_pictures_of_the_training(tmp_path):
    fill(tmp_path, "a.png", "sub/b.png", "c.png")
    rows = [{"file_name": name, "text": "x"} for name in ("sub/b.png", "a.png", "sub/b.png")]
    list_in(tmp_path, *rows)
    seen = [np.asarray(image).tolist() for image in training_images(tmp_path, listed_only=True)]
    assert seen == [np.asarray(picture(i)).tolist() for i in (1, 0)]
    assert len(training_images(tmp_path, listed_only=False)) == 3
    list_in(tmp_path, *({"photo": name, "text": "x"} for name in ("a.png", "c.png")))
    assert len(training_images(tmp_path, listed_only=True, image_column="photo")) == 2
    assert len(training_images(fill(tmp_path / "bare", "a.png", "b.png"), listed_only=True)) == 2


def test_a_style_from_the_hub(monkeypatch):
    columns = {"photo": [picture(0), picture(1)], "caption": ["one", "two"]}
    features = datasets.Features(photo=datasets.Image(), caption=datasets.Value("string"))
    data = datasets.Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    found = CaptionedImages("someone/something", None, "photo", "caption")
    assert found.captions == ["one", "two"]
    assert np.array_equal(np.asarray(found[1]["image"]), np.asarray(picture(1)))
    assert len(CaptionedImages("someone/something", None, "photo", "caption", max_samples=1)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Archives


class SlowFile(io.FileIO):
    """A file that takes its time to say where it is."""

    def tell(self) -> int:
        position = super().tell()
        threading.Event().wait(2e-5)
        return position


def test_threads_do_not_share_an_open_archive(tmp_path, monkeypatch):
    members = {f"{i}.bin": np.random.default_rng(i).bytes(3000) for i in range(20)}
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    plain = io.open

    def slow(file, mode="r", *args, **kwargs):
        if str(file).endswith("some.zip"):
            return io.BufferedReader(SlowFile(file))
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", slow)
    interval = sys.getswitchinterval()
    archive, barrier = Archive(str(tmp_path / "some.zip")), threading.Barrier(8)

    def read(start: int) -> list[bool]:
        barrier.wait()
        names = [f"{(start + i) % 20}.bin" for i in range(100)]
        return [archive.read(name) == members[name] for name in names]

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(all(results) for results in pool.map(read, range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_a_good_archive_is_not_to_be_deleted(tmp_path):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.jsonl", '{"file_name": "a.png", "text": "x"}')
        archive.writestr("a.png", b"x")
    content = bytearray(path.read_bytes())
    for flag in (content.rindex(b"PK\x01\x02") + 8, content.rindex(b"PK\x03\x04") + 6):
        content[flag] |= 1  # as with a password
    path.write_bytes(content)
    data = style(path)
    with pytest.raises(OSError, match="a.png in .*some.zip.*password.*: unpack it and give the folder$"):
        data[0]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures are what one sees


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


def test_opaque_conditions_stay_as_they_are(capsys):
    for color in ("black", "white"):
        image = Image.new("RGBA", (8, 8), color)
        image.putpixel((3, 3), (9, 9, 9, 255))
        assert np.array_equal(np.asarray(condition_to_rgb(image, "x")), np.asarray(image)[..., :3])
    assert not capsys.readouterr().out


def wide_profile(gray: bool = False) -> bytes:
    """sRGB's profile with another name and red and green exchanged, or with another gamma: what it says is seen."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if gray:
        raise NotImplementedError
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
        found = open_image(saved(image, icc_profile=wide_profile()), "x").getpixel((0, 0))
        assert np.abs(np.subtract(found, (0, 255, 0))).max() <= 2
    gray = open_image(saved(Image.new("L", (4, 4), 100), icc_profile=wide_profile()), "x").getpixel((0, 0))
    assert np.abs(np.subtract(gray, 100)).max() <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(open_image(saved(picture(0), icc_profile=srgb), "x")), np.asarray(picture(0))), (
        "sRGB itself changes nothing"
    )


def test_a_profile_that_does_not_fit_is_said_and_left_out(capsys):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    for i, (image, format, profile) in enumerate(
        [(picture(0), "PNG", b"no profile"), (picture(0), "PNG", lab), (cmyk, "TIFF", wide_profile())]
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


def test_a_worker_tells_what_is_wrong_in_a_sentence(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    list_in(tmp_path, {"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y"})
    for workers in (0, 1):
        with pytest.raises(SystemExit) as caught, fail_clearly():
            list(DataLoader(Samples(style(tmp_path), 8, None), num_workers=workers))
        message = str(caught.value)
        assert message.startswith(f"\nError: {tmp_path / 'b.png'} is damaged or not an image (")
        assert message.endswith("): fetch or store it again") and message.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of the class


class OneProcess:
    process_index, num_processes, is_local_main_process, device = 0, 1, True, "cpu"
    print = staticmethod(print)

    def wait_for_everyone(self) -> None:
        pass


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The seeds that class pictures were drawn with; they are drawn at once."""
    seeds_so_far: list[int] = []

    def generate(pipeline, prompts, seeds, guidance_scale):
        seeds_so_far.extend(seeds)
        return [picture(seed) for seed in seeds]

    monkeypatch.setattr(class_images, "load_pipeline", lambda base, device: None)
    monkeypatch.setattr(class_images, "images_at_once", lambda pipeline: 4)
    monkeypatch.setattr(class_images, "generate", generate)
    return seeds_so_far


def make_base(folder: Path, content: bytes = b"weights") -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    return str(folder)


def test_ones_own_class_pictures_are_used(tmp_path, drawn):
    own = fill(tmp_path / "own", *(f"photo {i}.png" for i in range(4)))
    (own / "notes.txt").write_text("no picture")
    base = make_base(tmp_path / "base")
    draw_class_images(base, "a cat", own, 4, 7.5, OneProcess())
    assert not drawn
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1]
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1] and len(SubjectImages(own, "a cat", 6)) == 6
    (own / "class-0001.png").write_bytes(b"damaged")
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1, 1]


@pytest.mark.parametrize(
    "prompt, base, guidance, message",
    [
        ("a house", "base", 7.5, "--class_prompt was 'a cat' and is 'a house'"),
        ("a cat", "other", 7.5, "the base was '.*base' and is '.*other'"),
        ("a cat", "base", 2.5, "--validation_guidance_scale was 7.5 and is 2.5"),
    ],
)
def test_class_pictures_of_another_class_base_or_guidance_are_refused(tmp_path, drawn, prompt, base, guidance, message):
    make_base(tmp_path / "base"), make_base(tmp_path / "other", b"others"), make_base(tmp_path / "copy")
    folder = tmp_path / "class"
    draw_class_images(str(tmp_path / "base"), "a cat", folder, 2, 7.5, OneProcess())
    with pytest.raises(ValueError, match=f"class-0000.png was drawn.*{message}.*another --class_data_dir"):
        draw_class_images(str(tmp_path / base), prompt, folder, 2, guidance, OneProcess())
    draw_class_images(str(tmp_path / "copy"), "a cat", folder, 2, 7.5, OneProcess())  # the same base elsewhere
    assert drawn == [0, 1]
