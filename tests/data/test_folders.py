"""Folders and archives mean what they hold, for every training and whatever their files are called."""

from __future__ import annotations

import csv
import io
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
from torch.utils.data import DataLoader

from fill50k import load_data
from finetune.data.cache import Samples
from finetune.data.files import Archive
from finetune.setup import fail_clearly
from folders import fill, list_in, picture
from pictures import CAPTIONS_COUNT, CaptionedImages, SubjectImages, training_images


def style(folder: Path, **columns: str) -> CaptionedImages:
    return CaptionedImages(None, str(folder), columns.get("image", "image"), columns.get("text", "text"))


def style_texts(folder: Path) -> list[str]:
    return style(folder).captions


def controlnet_texts(folder: Path) -> list[str]:
    data = load_data(str(folder), conditioning_image_column="image")
    return [data[i]["text"] for i in range(len(data))]


def subject_texts(folder: Path) -> list[str]:
    subject = SubjectImages(folder, "sks", with_captions=True)
    return [prompt for prompt in subject.prompts if prompt != "sks"][::CAPTIONS_COUNT]


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
@pytest.mark.parametrize(
    "texts", [["2024-01-01", "2024-01-02"], ["7", "8"], ["null", "true", " a cat\u2028in \x85snow, \u00e9"]]
)
def test_captions_are_text_whatever_they_look_like(tmp_path, texts_of, texts):
    names = [f"{i}.png" for i in range(len(texts))]
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


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_text_is_found_beside_its_picture_whoever_wrote_their_names(tmp_path, forms):
    """macOS may have written one of the names, with loose accents, and an editor the other."""
    picture_name, text_name = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in forms)
    fill(tmp_path, f"{picture_name}.png")
    (tmp_path / f"{text_name}.txt").write_text("found", encoding="utf-8")
    assert style_texts(tmp_path) == subject_texts(tmp_path) == ["found"]


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


@every_training
def test_lines_of_a_text_beside_a_picture_are_one_caption(tmp_path, texts_of):
    fill(tmp_path, "a.png", "b.c.png")
    (tmp_path / "a.TXT").write_bytes(b"a cat,\r\n  in snow\r\n")
    (tmp_path / "b.c.txt").write_bytes(b"")
    assert texts_of(tmp_path) == ["a cat, in snow", ""]


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
        (("", "test"), {""}),
        (("one/two", "three"), {"one/two", "three"}),
        (("dev/train", "dev/test"), {"dev/train"}),
        (("train", "Test"), {"train"}),
        (("Train", "VAL"), {"Train"}),
        (("train2017", "val2017"), {"train2017"}),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("by_texts", [False, True])
def test_listings_in_folders_below(tmp_path, capsys, listed, read, zipped, by_texts):
    path = tmp_path / "data"
    for folder in listed:
        rows = [{"file_name": "a.png", "text": folder or "."}]
        (write_texts if by_texts else lambda folder, rows: list_in(folder, *rows))(fill(path / folder, "a.png"), rows)
    if by_texts and listed == ("", "sub"):
        read = {*listed}  # unlike a list, a .txt stands for its picture only
    if zipped:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for file in path.rglob("*.*"):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "data.zip"
    assert set(style_texts(path)) == {folder or "." for folder in read}
    said = capsys.readouterr().out
    assert ("not read" in said) == ("left out" in said) == (len(read) < len(listed))


@every_training
@pytest.mark.parametrize("listed", [(), ("train",), ("test",)])
def test_pictures_for_testing_are_not_trained_on(tmp_path, texts_of, listed):
    """Whether a list or .txt files say what is in each of the folders."""
    for folder in ("train", "test"):
        rows = [{"file_name": "1.png", "text": f"to {folder}"}]
        if folder in listed:
            list_in(fill(tmp_path / folder, "1.png"), *rows)
        else:
            write_texts(fill(tmp_path / folder, "1.png"), rows)
    if texts_of is subject_texts:
        fill(tmp_path, "cat.png")
        assert "are not listed for training: test/1.png" in SubjectImages(tmp_path, "sks", None, True).skipped[-1]
    assert texts_of(tmp_path) == ["to train"]


@every_training
def test_upper_and_lower_case_are_the_same(tmp_path, texts_of):
    fill(tmp_path / "texts", "Dog.png", "cat.JPG")
    (tmp_path / "texts" / "dog.txt").write_text("a dog")
    (tmp_path / "texts" / "CAT.TXT").write_text("a cat")
    assert texts_of(tmp_path / "texts") == ["a dog", "a cat"]
    fill(tmp_path / "both", "Dog.png", "dog.png")
    (tmp_path / "both" / "Dog.txt").write_text("one of its own")
    assert texts_of(tmp_path / "both") == ["one of its own"]
    list_in(fill(tmp_path / "listed", "a.png"), {"file_name": "A.PNG", "text": "listed"})
    (tmp_path / "listed" / "metadata.jsonl").rename(tmp_path / "listed" / "Metadata.JSONL")
    assert texts_of(tmp_path / "listed") == ["listed"]
    write_csv(fill(tmp_path / "csv", "a.png"), [{"file_name": "a.png", "text": "from CSV"}])
    (tmp_path / "csv" / "metadata.csv").rename(tmp_path / "csv" / "Metadata.CSV")
    assert texts_of(tmp_path / "csv") == ["from CSV"]


@every_training
@pytest.mark.parametrize(
    "content",
    [
        "file_name;text\na.png;a cat, black\n",
        "file_name\ttext\r\na.png\ta cat, black\r\n",
        '"file_name";"text"\n"a.png";"a cat, black"\n',
        'file_name, text\na.png, "a cat, black"\n',
        'file_name , text \na.png , "a cat, black"\n',
        "text;file_name\na cat, black;a.png\n",
    ],
)
def test_csv_as_people_and_spreadsheets_write_it(tmp_path, texts_of, content):
    fill(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(content.encode())
    assert texts_of(tmp_path) == ["a cat, black"]


@every_training
@pytest.mark.parametrize("write", [write_csv, write_parquet, write_texts])
def test_empty_texts_are_counted_and_named(tmp_path, texts_of, write, capsys):
    texts = {"a.png": "", "sub/b.png": "  ", "c.png": "a cat"}
    write(fill(tmp_path, *texts), [{"file_name": name, "text": text} for name, text in texts.items()])
    texts_of(tmp_path)
    said = capsys.readouterr().out
    assert f"2 texts of {tmp_path} are empty, which trains on the empty prompt: a.png, sub/b.png." in said


@every_training
@pytest.mark.parametrize("name", [".cat.png", "./.cat.png", "../elsewhere/cat.png", ".hidden/cat.png"])
def test_a_listed_picture_is_a_sample_wherever_it_lies(tmp_path, texts_of, name):
    fill(tmp_path / "data", "a.png", name)
    list_in(tmp_path / "data", {"file_name": name, "text": "found"}, {"file_name": "a.png", "text": "a"})
    assert sorted(texts_of(tmp_path / "data")) == ["a", "found"]


@every_training
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.csv", b'file_name,text\na.png,"a cat\nb.png,a dog\n', "line 2 is not valid CSV"),
        ("metadata.csv", b"file_name,text\na.png,a cat, in snow\n", "line 2 has not as many fields"),
        ("metadata.csv", b"file_name,text\na.png\n", "line 2 has not as many fields"),
        ("metadata.csv", b"file_name|text\na.png|a cat\n", r"line 2 has no column 'image', only file_name\|text"),
        ("metadata.csv", b"file_name;text\na.png;a cat; in snow\n", "line 2 has not as many .*\"quote\" .* has ';' in"),
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


def test_a_style_from_the_hub(monkeypatch, capsys):
    columns = {"photo": [picture(0), picture(1)], "caption": ["one", " "]}
    features = datasets.Features(photo=datasets.Image(), caption=datasets.Value("string"))
    data = datasets.Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    found = CaptionedImages("someone/something", None, "photo", "caption")
    assert found.captions == ["one", " "]
    assert "1 texts of someone/something are empty" in capsys.readouterr().out
    assert np.array_equal(np.asarray(found[1]["image"]), np.asarray(picture(1)))
    assert len(CaptionedImages("someone/something", None, "photo", "caption", max_samples=1)) == 1


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


def test_no_message_holds_an_objects_address(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "b.jpg").write_text("no picture")
    (tmp_path / "README.txt").write_text("These are mine.")
    list_in(tmp_path, {"file_name": "b.jpg", "text": "x"})
    with pytest.raises(OSError) as caught:
        style(tmp_path)[0]
    (tmp_path / "metadata.jsonl").unlink()
    messages = [str(caught.value), *SubjectImages(tmp_path, "sks").skipped]
    assert messages[1] == "README.txt is no picture and is left out"
    assert "b.jpg is damaged or not an image (cannot identify image file): fetch or store it again" == messages[2]
    assert not any("0x" in message for message in messages)


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


@pytest.mark.parametrize("written", ["sub\\a.png", "./sub/a.png"])
def test_names_in_archives_as_any_system_writes_them(tmp_path, written):
    content = (fill(tmp_path, "a.png") / "a.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr(written.replace("a.png", "metadata.jsonl"), '{"file_name": "a.png", "text": "found"}')
        archive.writestr(written, content)
    data = style(tmp_path / "some.zip")
    assert data.captions == ["found"] and np.array_equal(np.asarray(data[0]["image"]), np.asarray(picture(0)))


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
