"""Fill50K: every way to get it gives the same samples, every damage is named, and what is rendered is what it says."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import runpy
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fill50k
import finetune.data.files
import train
from fill50k import RenderedFill50K, draw_line, load_data, render
from finetune.data.colors import COLORS
from rendered_discs import Disc, Line, render_condition

DATA = Path(fill50k.__file__).parent / "data"
COUNT = 4


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


SAMPLES = [RenderedFill50K(resolution=64)[i] for i in range(COUNT)]


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def pictures(column: str, folder: str) -> dict[str, bytes]:
    return {f"{folder}{i}.png": png(sample[column]) for i, sample in enumerate(SAMPLES)}


def hub_layout(images: str = "images/", conditions: str = "conditioning_images/") -> dict[str, bytes]:
    """The files of fusing/fill50k."""
    rows = [
        {"text": s["text"], "image": f"images/{i}.png", "conditioning_image": f"conditioning_images/{i}.png"}
        for i, s in enumerate(SAMPLES)
    ]
    return {
        "train.jsonl": lines(*rows),
        "images.zip": zip_bytes(pictures("image", images)),
        "conditioning_images.zip": zip_bytes(pictures("conditioning_image", conditions)),
    }


def unpacked_hub_layout() -> dict[str, bytes]:
    return {
        "train.jsonl": hub_layout()["train.jsonl"],
        **pictures("image", "images/"),
        **pictures("conditioning_image", "conditioning_images/"),
    }


def original_layout() -> dict[str, bytes]:
    """The files of ControlNet's fill50k.zip."""
    rows = [
        {"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": s["text"]} for i, s in enumerate(SAMPLES)
    ]
    return {
        "prompt.json": lines(*rows),
        **pictures("conditioning_image", "source/"),
        **pictures("image", "target/"),
    }


def image_folder() -> dict[str, bytes]:
    rows = [{"file_name": f"{i}.png", "edges": f"edges/{i}.png", "label": s["text"]} for i, s in enumerate(SAMPLES)]
    return {
        "metadata.jsonl": lines(*rows),
        **pictures("image", ""),
        **pictures("conditioning_image", "edges/"),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def same(sample, expected) -> bool:
    assert list(sample) == ["image", "conditioning_image", "text"]
    for column in ("image", "conditioning_image"):
        assert sample[column].mode == "RGB"
    return sample["text"] == expected["text"] and all(
        np.array_equal(np.asarray(sample[column]), np.asarray(expected[column]))
        for column in ("image", "conditioning_image")
    )


def same_data(data) -> bool:
    # iteration, which stops at IndexError, and negative indices, as of a list
    samples = list(data)
    return len(data) == COUNT == len(samples) and all(map(same, samples, SAMPLES)) and same(data[-1], SAMPLES[-1])


# ---------------------------------------------------------------------------------------------------------------------
# From disk


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    "files",
    [
        hub_layout(),
        hub_layout(images="", conditions=""),
        below("fill50k", hub_layout()),
        unpacked_hub_layout(),
        original_layout(),
        below("fill50k", original_layout()),
        # the index of the train split is taken where there are more
        {**below("test", {"prompt.json": b""}), **below("train", original_layout())},
    ],
    ids=["hub", "hub-flat", "hub-below", "hub-unpacked", "original", "original-below", "splits"],
)
def test_layouts_of_fill50k(tmp_path, files, zipped):
    if zipped:
        path = tmp_path / "fill50k.zip"
        path.write_bytes(zip_bytes({**files, "__MACOSX/fill50k/._prompt.json": b"\0"}))
    else:
        path = write(tmp_path / "fill50k", files)
    assert same_data(load_data(str(path)))


def test_image_folder_with_columns_of_any_name(tmp_path):
    folder = write(tmp_path, image_folder())
    assert same_data(load_data(str(folder), conditioning_image_column="edges", caption_column="label"))


def test_image_folder_may_use_the_file_name_suffix(tmp_path):
    files = image_folder()
    files["metadata.jsonl"] = files["metadata.jsonl"].replace(b'"edges"', b'"conditioning_image_file_name"')
    assert same_data(load_data(str(write(tmp_path, files)), caption_column="label"))


def test_any_picture_becomes_upright_rgb(tmp_path):
    gray = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    stream = io.BytesIO()
    gray.save(stream, "PNG", exif=exif)
    files = {"metadata.jsonl": lines({"file_name": "a.png", "depth": "a.png", "text": "x"}), "a.png": stream.getvalue()}
    image = load_data(str(write(tmp_path, files)), conditioning_image_column="depth")[0]["image"]
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_sixteen_bit_pictures_are_refused_as_they_would_turn_white(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    files = {"metadata.jsonl": lines({"file_name": "a.png", "depth": "a.png", "text": "x"}), "a.png": png(deep)}
    data = load_data(str(write(tmp_path, files)), conditioning_image_column="depth")
    with pytest.raises(ValueError, match=r"a\.png.*8-bit"):
        data[0]


def test_captions_may_hold_any_character(tmp_path):
    files = image_folder()
    row = {"file_name": "0.png", "edges": "edges/0.png", "label": "日本 \u2028 \x85 é"}
    files["metadata.jsonl"] = b"\xef\xbb\xbf\r\n" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n"
    data = load_data(str(write(tmp_path, files)), conditioning_image_column="edges", caption_column="label")
    assert len(data) == 1 and data[0]["text"] == row["label"]


def test_max_samples_takes_the_first(tmp_path):
    path = write(tmp_path, original_layout())
    data = load_data(str(path), max_samples=2)
    assert len(data) == 2 and same(data[1], SAMPLES[1])
    with pytest.raises(IndexError):
        data[2]
    assert len(load_data(str(path), max_samples=99)) == COUNT
    with pytest.raises(ValueError, match="max_samples must be at least 1, not 0"):
        load_data(str(path), max_samples=0)


def picture_sums(data, index: int) -> tuple[int, int]:
    sample = data[index]
    return int(np.asarray(sample["image"]).sum()), int(np.asarray(sample["conditioning_image"]).sum())


def test_an_archive_serves_threads_and_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fill50k.zip").write_bytes(zip_bytes(original_layout()))
    data = load_data("fill50k.zip")
    expected = [picture_sums(data, i) for i in range(COUNT)]
    monkeypatch.chdir("/")  # a worker started later must find the archive all the same

    barrier = threading.Barrier(4)

    def read(start: int):
        barrier.wait()
        return [picture_sums(data, (start + i) % COUNT) for i in range(40)]

    with ThreadPoolExecutor(4) as pool:
        for start, sums in enumerate(pool.map(read, range(4))):
            assert sums == [expected[(start + i) % COUNT] for i in range(40)]

    assert [picture_sums(pickle.loads(pickle.dumps(data)), i) for i in range(COUNT)] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_opens_the_archive_itself(tmp_path):
    (tmp_path / "fill50k.zip").write_bytes(zip_bytes(original_layout()))
    data = load_data(str(tmp_path / "fill50k.zip"))
    archive = data.listing.files
    mine = archive.zip()

    def child(pipe):
        pipe.send((archive.zip() is mine, same_data(data)))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start()
    assert here.poll(10) and here.recv() == (False, True)
    process.join()
    assert archive.zip() is mine and same_data(data)


def test_fingerprint_tells_data_apart(tmp_path):
    def fingerprint(files, **arguments):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write(folder, {"fill50k.zip": zip_bytes(files)})
        return load_data(str(folder / "fill50k.zip"), **arguments).fingerprint

    files = original_layout()
    base = fingerprint(files)
    assert isinstance(base, str)
    assert base == fingerprint(files), "the same data elsewhere"
    others = [
        fingerprint(files, max_samples=3),
        fingerprint(files, image_column="source"),
        fingerprint({**files, "target/2.png": files["target/2.png"][::-1]}),
        fingerprint({**files, "prompt.json": files["prompt.json"].replace(b"circle", b"square", 1)}),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.fixture(params=[(2**30, 2**12), (0, 2**12), (0, 2)], ids=["few bytes", "small files", "large files"])
def amount_of_data(request, monkeypatch):
    monkeypatch.setattr(finetune.data.files, "HASHED_BYTES", request.param[0])
    monkeypatch.setattr(finetune.data.files, "PIECE_BYTES", request.param[1])


def test_fingerprint_sees_a_picture_that_took_anothers_place_in_a_folder(tmp_path, amount_of_data):
    folder = str(write(tmp_path / "data", original_layout()))
    before = load_data(folder).fingerprint
    assert load_data(folder).fingerprint == before
    path = tmp_path / "data/target/1.png"
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:60] + bytes(byte ^ 1 for byte in content[60:]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert load_data(folder).fingerprint != before


def test_fingerprint_is_the_same_for_a_copy_elsewhere(tmp_path, amount_of_data):
    one, other = (write(tmp_path / name, original_layout()) for name in ("one", "other"))
    os.utime(other / "target/1.png", ns=(0, 0))
    assert load_data(str(one)).fingerprint == load_data(str(other)).fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong is named


def test_missing_paths(tmp_path):
    for name in (str(tmp_path / "no_such_folder"), "./no_such_folder", "no_such.zip", "data/no/folder"):
        with pytest.raises(FileNotFoundError, match="no folder or zip archive.*" + Path(name).name):
            load_data(name)
    with pytest.raises(FileNotFoundError, match=r"holds none of train\.jsonl, prompt\.json, metadata\.jsonl"):
        load_data(str(tmp_path))


def test_wrong_columns_list_the_right_ones(tmp_path):
    folder = str(write(tmp_path, image_folder()))
    with pytest.raises(ValueError, match="no column 'text', only edges, file_name, label.*--caption_column"):
        load_data(folder, conditioning_image_column="edges")
    with pytest.raises(ValueError, match="no column 'conditioning_image', only edges, file_name, label"):
        load_data(folder, caption_column="label")
    with pytest.raises(ValueError, match="rendered data have the columns image, conditioning_image, text"):
        load_data("rendered", caption_column="label")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"source": "source/0.png", ', r"not valid JSON"),
        (b'["source/0.png"]', r"must be a JSON object.*not list"),
        (b'{"source": "source/0.png", "target": "target/0.png", "prompt": 7}', r"'prompt' must be text, not int: 7"),
        (b'{"source": "source/0.png", "target": null, "prompt": ""}', r"'target' must be text, not NoneType"),
        (
            b'{"source": "source/0.png", "target": "target/x.png", "prompt": ""}',
            r"names .*x\.png.*, which is not there",
        ),
    ],
    ids=["json", "object", "caption", "path", "missing"],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message, zipped):
    files = original_layout()
    first, rest = files["prompt.json"].split(b"\n", 1)
    files["prompt.json"] = b"\n".join([first, b"", line, rest])
    path = tmp_path / "x"
    path.write_bytes(zip_bytes(files)) if zipped else write(path, files)
    with pytest.raises((ValueError, FileNotFoundError), match=r"prompt\.json.*, line 3.*" + message):
        load_data(str(path))


def test_an_index_without_samples_or_of_another_encoding(tmp_path):
    with pytest.raises(ValueError, match=r"prompt\.json lists no samples"):
        load_data(str(write(tmp_path, {"prompt.json": b"\n\n"})))
    with pytest.raises(ValueError, match=r"prompt\.json is not UTF-8"):
        load_data(str(write(tmp_path, {"prompt.json": b'{"prompt": "caf\xe9"}'})))


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "fill50k.zip"
    whole = zip_bytes(original_layout())
    for broken in (whole[: len(whole) // 2], b"<html>not found</html>", b""):
        path.write_bytes(broken)
        with pytest.raises(OSError, match=r"fill50k\.zip cannot be read as a zip archive.*fetch it again") as caught:
            load_data(str(path))
        assert caught.value.__cause__ is not None

    files = hub_layout()
    files["conditioning_images.zip"] = files["conditioning_images.zip"][:-30]
    with pytest.raises(OSError, match=r"conditioning_images\.zip cannot be read as a zip archive"):
        load_data(str(write(tmp_path / "folder", files)))
    path.write_bytes(zip_bytes(files))
    with pytest.raises(OSError, match=r"conditioning_images\.zip in .*fill50k\.zip cannot be read as a zip archive"):
        load_data(str(path))


def test_a_damaged_picture_is_named_and_the_others_still_read(tmp_path):
    files = original_layout()
    good = files["target/1.png"]
    for broken in (good[:60], b"no picture", b"", good[:40] + bytes(20) + good[60:]):
        files["target/1.png"] = broken
        folder = write(tmp_path / "folder", files)
        archive = tmp_path / "some.zip"
        archive.write_bytes(zip_bytes(files))
        for path, message in ((folder, r"target.1\.png is damaged"), (archive, r"target/1\.png in .*some\.zip is dam")):
            data = load_data(str(path))
            assert same(data[0], SAMPLES[0]) and same(data[2], SAMPLES[2])
            with pytest.raises(OSError, match=message):
                data[1]


def test_a_member_that_was_damaged_in_the_archive_is_named(tmp_path):
    files = original_layout()
    archive = bytearray(zip_bytes(files))
    place = archive.index(files["target/1.png"])
    archive[place + 50] ^= 255
    (tmp_path / "some.zip").write_bytes(archive)
    data = load_data(str(tmp_path / "some.zip"))
    with pytest.raises(OSError, match=r"target/1\.png in .*some\.zip cannot be read.*CRC"):
        data[1]
    assert same(data[0], SAMPLES[0])


# ---------------------------------------------------------------------------------------------------------------------
# From the hub, which is played by a folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Files that are written to the returned folder can be downloaded, as fusing/fill50k's."""

    def download(repo_id, filename, repo_type):
        assert (repo_id, repo_type) == ("fusing/fill50k", "dataset")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


def test_fill50k_of_the_hub(hub, monkeypatch):
    write(hub, hub_layout())
    monkeypatch.setattr(datasets, "load_dataset", None)  # it refuses the data set, or would run its script
    assert same_data(load_data("fusing/fill50k"))
    assert len(load_data("fusing/fill50k", max_samples=1)) == 1
    with pytest.raises(ValueError, match="no column 'prompt', only conditioning_image, image, text"):
        load_data("fusing/fill50k", caption_column="prompt")


def test_damage_in_what_the_hub_gave(hub):
    files = hub_layout()
    write(hub, {**files, "images.zip": files["images.zip"][:-100]})
    with pytest.raises(OSError, match=r"images\.zip cannot be read as a zip archive.*delete it and fetch it again"):
        load_data("fusing/fill50k")
    write(hub, {**files, "images.zip": zip_bytes(dict(list(pictures("image", "images/").items())[:2]))})
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl, line 3 names images/2\.png in .*images\.zip"):
        load_data("fusing/fill50k")


@pytest.mark.parametrize("name", ["fusing/fill50k", "someone/something", "something"])
@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("no scripts"), ValueError("no split")])
def test_no_hub(monkeypatch, name, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError) as caught:
        load_data(name)
    assert caught.value.__cause__ is error
    for part in (name, str(error), "connection", "`hf auth login`", "huggingface-cli login", "--dataset_name rendered"):
        assert part in str(caught.value)


@pytest.fixture
def hub_data(monkeypatch):
    """A data set of the hub with columns of other names, one row of which is wrong."""
    columns = {
        "picture": [sample["image"] for sample in SAMPLES],
        "sketch": [sample["conditioning_image"].convert("L") for sample in SAMPLES],
        "caption": [sample["text"] for sample in SAMPLES[:3]] + [None],
        "number": list(range(COUNT)),
    }
    features = datasets.Features(
        picture=datasets.Image(),
        sketch=datasets.Image(),
        caption=datasets.Value("string"),
        number=datasets.Value("int64"),
    )
    data = datasets.Dataset.from_dict(columns, features=features)

    def load_dataset(name, split):
        assert (name, split) == ("someone/something", "train")
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return {
        "dataset_name": "someone/something",
        "image_column": "picture",
        "conditioning_image_column": "sketch",
        "caption_column": "caption",
    }


def test_any_data_set_of_the_hub(hub_data):
    hub_data["max_samples"] = 3  # the row that is wrong is not among them
    data = load_data(**hub_data)
    assert len(data) == 3 and all(same(data[i], SAMPLES[i]) for i in range(3))
    part = load_data(**{**hub_data, "max_samples": 2})
    assert len(part) == 2 and same(part[-1], SAMPLES[1]) and len(list(part)) == 2
    assert part.contents() == data.contents()[:2] and len(set(data.contents())) == 3
    with pytest.raises(IndexError):
        part[2]
    same_column = load_data(**{**hub_data, "conditioning_image_column": "picture"})
    assert np.array_equal(np.asarray(same_column[0]["conditioning_image"]), np.asarray(SAMPLES[0]["image"]))
    fingerprints = [d.fingerprint for d in (data, part, same_column)]
    assert len(set(fingerprints)) == 3 and load_data(**hub_data).fingerprint == fingerprints[0]
    assert same(pickle.loads(pickle.dumps(data))[1], SAMPLES[1])


@pytest.mark.parametrize("as_struct", [True, False])
def test_pictures_in_parquet_of_other_programs(hub_data, as_struct, tmp_path, monkeypatch):
    """Without the notes of `datasets` a picture's column is a struct, or plain bytes."""
    data = datasets.load_dataset("someone/something", "train").select(range(3))
    rows = [{**row, **{name: encoded(row[name]) for name in ("picture", "sketch")}} for row in data]
    if as_struct:
        rows = [{**row, **{name: {"bytes": row[name], "path": None} for name in ("picture", "sketch")}} for row in rows]
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if as_struct else pa.binary()
    fields = [("picture", schema), ("sketch", schema), ("caption", pa.string())]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), tmp_path / "train.parquet")
    plain = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert not isinstance(plain.features["picture"], datasets.Image)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: plain)
    found = load_data(**hub_data)
    assert all(same(found[i], SAMPLES[i]) for i in range(3))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_wrong_columns_of_a_data_set_of_the_hub(hub_data):
    with pytest.raises(ValueError, match="no column 'image', only picture, sketch, caption, number"):
        load_data(**{**hub_data, "image_column": "image"})
    with pytest.raises(
        ValueError, match="sample 3 of someone/something: column 'caption' must hold text, not NoneType"
    ):
        load_data(**hub_data)
    with pytest.raises(ValueError, match="column 'number' must hold an image, not int"):
        load_data(**{**hub_data, "conditioning_image_column": "number"})[0]


def test_empty_captions_of_the_hub_are_told(hub_data, monkeypatch, capsys):
    data = datasets.load_dataset("someone/something", "train").remove_columns("caption")
    data = data.add_column("caption", ["", "one", " ", "two"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    load_data(**{**hub_data, "dataset_name": "someone/else"})
    assert "2 texts of someone/else are empty" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Rendered


def to_rim(disc: Disc, resolution: int) -> np.ndarray:
    """How far outside the disc each pixel's centre is, in pixels of the 512 px frame; negative inside."""
    rows, columns = (np.mgrid[:resolution, :resolution] + 0.5) * 512 / resolution - 0.5
    return np.hypot(columns - disc.x, rows - disc.y) - disc.radius


def test_samples_stay_what_they_are():
    # Written down, so that another release of numpy or Pillow cannot change what was trained or measured unnoticed.
    assert render(0).disc == Disc(71, 111, 80)
    assert render(0).text == "aquamarine circle with dark turquoise background"
    assert [draw_line(i) for i in range(3)] == [Line(), Line(3, soft=True), Line()]
    assert render(1_000_000, min_color_difference=20).disc == Disc(99, 233, 80)
    assert render(1_000_000, min_color_difference=20).text == "maroon circle with dark green background"


@pytest.mark.parametrize("resolution", [512, 128, 64])
def test_image_condition_and_prompt_show_the_same_disc(resolution):
    for index in range(12):
        sample = render(index, resolution, min_color_difference=20)
        assert sample.image.size == sample.conditioning_image.size == (resolution, resolution)
        assert sample.text == f"{sample.disc_color} circle with {sample.background_color} background"
        image, outline = np.asarray(sample.image), np.asarray(sample.conditioning_image)
        outside, pixel = to_rim(sample.disc, resolution), 512 / resolution
        assert (image[outside < -pixel] == COLORS[sample.disc_color]).all()
        assert (image[outside > pixel] == COLORS[sample.background_color]).all()

        # the outline lies on the rim, all along it, and nowhere else
        line, ground = sample.line, 255 if sample.line.inverted else 0
        half = 1 + line.width * (0.75 if line.soft else 0.5)
        noise = 16 if line.jpeg else 0
        strength = np.abs(outline.astype(int) - ground).max(2)
        assert strength[np.abs(outside) > half + pixel + (8 if line.jpeg else 0)].max(initial=0) <= noise
        angles = np.linspace(0, 2 * np.pi, 200)
        x, y = (
            np.round((center + sample.disc.radius * along + 0.5) / pixel - 0.5).astype(int)
            for center, along in ((sample.disc.x, np.cos(angles)), (sample.disc.y, np.sin(angles)))
        )
        seen = (x >= 1) & (x < resolution - 1) & (y >= 1) & (y < resolution - 1)
        around = [strength[y[seen] + dy, x[seen] + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert np.max(around, axis=0).min() >= (160 if resolution == 512 else 160 / pixel)
    assert np.array_equal(np.asarray(render_condition(sample.disc, resolution, line)), outline)


LOOKS = [Line(w, soft, inverted) for w in range(1, 9) for soft in (False, True) for inverted in (False, True)]


def thickness(image: Image.Image, disc: Disc) -> float:
    """Of the line, px: what it adds to the ground's brightness, as so many pixels of full strength, by its length."""
    gray = np.asarray(image.convert("L")).astype(float)
    return np.abs(gray - np.median(gray)).sum() / 255 / (2 * np.pi * disc.radius)


@pytest.mark.parametrize("line", LOOKS, ids=lambda line: f"{line.width}-{line.soft}-{line.inverted}")
def test_lines_are_as_thick_as_they_say_and_lie_on_the_rim(line):
    disc = Disc(256, 256, 100)
    image = render_condition(disc, line=line)
    assert thickness(image, disc) == pytest.approx(line.width, rel=0.03, abs=0.15)
    gray = np.asarray(image.convert("L")).astype(float)
    strength = np.abs(gray - (255 if line.inverted else 0))
    assert np.median(gray) == (255 if line.inverted else 0)
    assert (strength * to_rim(disc, 512)).sum() / strength.sum() == pytest.approx(0.25, abs=0.45)
    assert (len(np.unique(gray)) > 2) == line.soft


def test_a_jpeg_leaves_noise_around_the_line():
    disc = Disc(256, 256, 100)
    clean, noisy = (np.asarray(render_condition(disc, line=Line(jpeg=jpeg))).astype(int) for jpeg in (False, True))
    near = np.abs(to_rim(disc, 512)) < 16
    assert 2 < np.abs(clean - noisy)[near].mean() < 20 and np.abs(clean - noisy)[~near].max() <= 16
    assert (noisy == noisy[..., :1]).all()


def test_training_sees_every_kind_of_line_and_the_course_s_most():
    lines = [draw_line(i) for i in range(3000)]
    assert {line.width for line in lines} == set(range(1, 9))
    shares = {name: np.mean([getattr(line, name) for line in lines]) for name in ("soft", "inverted", "jpeg")}
    assert shares == pytest.approx({"soft": 0.25, "inverted": 0.2, "jpeg": 0.1}, abs=0.02)
    kinds = [(line.width, line.inverted) for line in lines]
    assert max(set(kinds), key=kinds.count) == (5, False)
    assert np.mean([line.inverted for line in lines]) < 0.5


def test_a_sample_s_line_can_be_chosen_and_nothing_else_changes():
    data = RenderedFill50K("test", 3, resolution=64, min_color_difference=20)
    own, thick = data.render(1), data.render(1, line=Line(8, soft=True))
    assert thick.line == Line(8, soft=True) and (own.text, own.disc) == (thick.text, thick.disc)
    assert_same_picture(own.image, thick.image)
    assert_same_picture(thick.conditioning_image, render_condition(own.disc, 64, Line(8, soft=True)))


def test_resolution_changes_nothing_but_the_resolution():
    for index in range(5):
        large = render(index)
        for resolution in (64, 100, 128, 768):
            sample = render(index, resolution)
            assert sample.image.size == (resolution, resolution)
            assert (sample.text, sample.disc) == (large.text, large.disc)
            area = [np.asarray(s.image, dtype=float).mean(axis=(0, 1)) for s in (sample, large)]
            assert np.abs(area[0] - area[1]).max() < 1.0
    with pytest.raises(ValueError, match="resolution must be at least 1 px, not 0"):
        RenderedFill50K(resolution=0)


def test_a_sample_depends_on_its_index_only():
    forwards, backwards = RenderedFill50K(resolution=32), RenderedFill50K(size=7, resolution=32)
    first = [forwards[i] for i in range(7)]
    assert all(same(backwards[i], first[i]) for i in reversed(range(7)))
    assert len({sample["text"] for sample in first}) == 7
    assert forwards.render(3).disc == render(3).disc and forwards.render(3, 64).image.size == (64, 64)
    with pytest.raises(IndexError):
        backwards[7]
    assert len(list(backwards)) == 7

    with ThreadPoolExecutor(3) as pool:
        assert all(map(same, pool.map(backwards.__getitem__, range(7)), first))


def test_train_and_test_never_share_a_sample():
    train, test = RenderedFill50K("train", 1_000_000, 16), RenderedFill50K("test", 1_000_000, 16)
    assert same(train[999_999], vars_of(render(999_999, 16))) and same(test[0], vars_of(render(1_000_000, 16)))
    assert train.render(0).disc != test.render(0).disc
    for split in ("train", "test"):
        for size in (0, 1_000_001):
            with pytest.raises(ValueError, match="size must be 1 to 1000000"):
                RenderedFill50K(split, size)
    with pytest.raises(ValueError, match="split must be one of train, test, not 'validation'"):
        RenderedFill50K("validation")


def vars_of(sample):
    return {"image": sample.image, "conditioning_image": sample.conditioning_image, "text": sample.text}


def test_distribution():
    samples = [render(i, 4) for i in range(1500)]
    x, y, radius = np.array([(s.disc.x, s.disc.y, s.disc.radius) for s in samples]).T
    for values, low, high in ((x, 0, 511), (y, 0, 511), (radius, 40, 280)):
        assert low <= values.min() < low + 8 and high - 8 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.04 * (high - low)
    leaves = (x < radius) | (y < radius) | (x + radius > 511) | (y + radius > 511)
    assert 0.4 < leaves.mean() < 0.9
    used = {s.disc_color for s in samples} | {s.background_color for s in samples}
    assert used == set(COLORS) - {"antique brown"}
    # These would be fuchsia on magenta and the like, which are two names of one colour, if that were not looked at.
    for sample in samples + [render(i, 4) for i in (7019, 7881, 12496, 15767)]:
        assert COLORS[sample.disc_color] != COLORS[sample.background_color]


def test_held_out_colors_can_be_told_apart():
    from skimage.color import deltaE_ciede2000, rgb2lab

    apart = RenderedFill50K("test", 300, 4, min_color_difference=20)
    closest = []
    for data in (apart, RenderedFill50K("test", 300, 4)):
        pairs = [(data.render(i).disc_color, data.render(i).background_color) for i in range(300)]
        lab = rgb2lab(np.array([[COLORS[name] for name in pair] for pair in pairs], dtype=np.uint8))
        closest.append(deltaE_ciede2000(lab[:, 0], lab[:, 1]).min())
    assert closest[0] >= 20 > closest[1]
    assert apart.render(5).disc == RenderedFill50K("test").render(5).disc, "the colours leave the discs as they are"
    with pytest.raises(ValueError, match="no two colours differ by 500"):
        RenderedFill50K(min_color_difference=500)


def test_rendered_through_load_data():
    data = load_data("rendered", max_samples=3)
    assert len(data) == 3 and data[0]["image"].size == (512, 512)
    assert len(load_data("rendered")) == 50_000 == len(load_data("rendered", max_samples=80_000))
    fingerprints = [
        d.fingerprint
        for d in (
            data,
            load_data("rendered"),
            RenderedFill50K("test"),
            RenderedFill50K(resolution=128),
            RenderedFill50K(min_color_difference=20),
        )
    ]
    assert len(set(fingerprints)) == 5 and RenderedFill50K(size=3).fingerprint == fingerprints[0]


# ---------------------------------------------------------------------------------------------------------------------
# The files in data/


def test_data_files_are_what_the_program_writes(tmp_path, monkeypatch):
    program = str(DATA.parent / "fill50k.py")
    monkeypatch.setattr(sys, "argv", [program, "--write_test_data", str(tmp_path / "new")])
    runpy.run_path(program, run_name="__main__")
    names = [path.relative_to(tmp_path / "new") for path in sorted((tmp_path / "new").rglob("*.*"))]
    assert len(names) == 8
    for name in names:
        if name.suffix == ".json":
            assert json.loads((tmp_path / "new" / name).read_text()) == json.loads((DATA / name).read_text())
        else:
            with Image.open(tmp_path / "new" / name) as new, Image.open(DATA / name) as kept:
                assert np.array_equal(np.asarray(new), np.asarray(kept))


def test_the_prompts_of_the_course():
    assert json.loads((DATA / "test_prompts.json").read_text()) == {
        "0": "pale golden rod circle with old lace background",
        "1": "sea green circle with a light cyan background",
        "2": "deep sky blue circle with a light yellow background",
        "3": "rosy brown circle with a misty rose background",
        "4": "forest green circle with an antique brown background",
    }


@pytest.mark.parametrize(
    ("name", "edges"),
    [("0", "left"), ("1", ""), ("2", "left top bottom"), ("3", "right"), ("4", "")],
)
def test_the_conditions_are_of_the_course_s_kind(name, edges):
    with Image.open(DATA / "test_conditions" / f"{name}.png") as image:
        assert image.size == (512, 512) and image.mode == "RGB"
        pixels = np.asarray(image)
    assert set(np.unique(pixels)) == {0, 255} and 0 < (pixels > 0).mean() < 0.05
    borders = {"left": pixels[:, 0], "right": pixels[:, -1], "top": pixels[0], "bottom": pixels[-1]}
    assert {side for side, line in borders.items() if line.any()} == set(edges.split())
    rows, columns = np.nonzero(pixels[..., 0])
    if name == "1":
        assert np.ptp(rows) < 130 and abs(rows.mean() - 256) < 40 and abs(columns.mean() - 256) < 40
    if name == "4":
        assert 160 < np.ptp(rows) < 300
    if name in "02":
        assert np.ptp(rows) > 350


@pytest.mark.parametrize("name", ["test_conditions/1", "test_conditions/4", "conditioning_image_1"])
def test_the_conditions_are_as_thick_as_the_course_s(name):
    with Image.open(DATA / f"{name}.png") as image:
        rows, columns = np.nonzero(np.asarray(image.convert("L")))
    radius = (np.ptp(rows) + np.ptp(columns) + 2) / 4 - 2.5
    assert len(rows) / (2 * np.pi * radius) == pytest.approx(5.0, abs=0.15)


def test_conditions_alone_are_those_of_the_samples():
    rendered = RenderedFill50K("test", 40, resolution=64)
    for index in range(40):
        assert_same_picture(rendered.conditioning_image(index), rendered[index]["conditioning_image"])


def assert_same_picture(one, other):
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_a_condition_is_made_small_once_as_long_as_there_is_room(monkeypatch):
    asked, rendered = [], RenderedFill50K("train", COUNT, resolution=64)
    make = rendered.conditioning_image
    monkeypatch.setattr(rendered, "conditioning_image", lambda index: asked.append(index) or make(index))
    monkeypatch.setattr(train, "KEPT_PIXELS", 2 * 32**2)
    samples = train.ControlNetSamples(rendered, 32, None)
    first, again = ([samples[i]["condition"] for i in range(3)] for _ in range(2))
    assert asked == [0, 1, 2, 2]
    assert all(torch.equal(one, other) for one, other in zip(first, again))
