"""Hostile and broken hand-ins are refused with a sentence before a byte is written; honest ones are unpacked."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from grading.files.archive import MB, ArchiveError, Limits, find_items, unpack

WEIGHTS = "pytorch_lora_weights.safetensors"
GOOD = {
    "20241234.pdf": b"%PDF-1.7 report",
    "task_1_controlnet/train.py": b"print('training')\n",
    "task_1_controlnet/diffusion/controlnet.py": b"",
    f"lora_1/{WEIGHTS}": b"one",
    f"lora_2/{WEIGHTS}": b"two",
}
CENTRAL, END = b"PK\1\2", b"PK\5\6"


def packed(files: dict[str, bytes], top: str = "", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return buffer.getvalue()


def with_entry(name: str, mode: int, content: bytes = b"train.py") -> bytes:
    """A good zip with one more entry of a given Unix mode."""
    buffer = io.BytesIO(packed(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, content)
    return buffer.getvalue()


def noise(length: int) -> bytes:
    return random.Random(0).getrandbits(8 * length).to_bytes(length, "little")


def patched(data: bytes, offset: int, value: bytes, signature: bytes = CENTRAL) -> bytes:
    """The zip with other bytes at an offset of its last central entry (or end record)."""
    start = data.rindex(signature) + offset
    return data[:start] + value + data[start + len(value) :]


def unpacked(data: bytes, folder: Path, limits: Limits = Limits()) -> Path:  # noqa: B008 (it is frozen)
    path = folder / "hand_in.zip"
    path.write_bytes(data)
    return unpack(path, folder / "target", limits)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(data: bytes, folder: Path, message: str, limits: Limits = Limits()) -> None:  # noqa: B008
    with pytest.raises(ArchiveError, match=message) as refused:
        unpacked(data, folder, limits)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400
    assert [path.name for path in folder.iterdir()] == ["hand_in.zip"]


def test_a_good_zip_is_unpacked_to_plain_files(tmp_path):
    data = with_entry("task_1_controlnet/tool.sh", stat.S_IFREG | stat.S_ISUID | 0o777, b"#!/bin/sh\n")
    folder = unpacked(data, tmp_path)
    assert files_of(folder) == {**GOOD, "task_1_controlnet/tool.sh": b"#!/bin/sh\n"}
    assert stat.S_IMODE((folder / "task_1_controlnet/tool.sh").stat().st_mode) == 0o644
    items = find_items(folder)
    assert items.problems == items.extra == ()
    assert items.report == folder / "20241234.pdf" and items.task_1 == folder / "task_1_controlnet"
    assert (items.lora_1.read_bytes(), items.lora_2.read_bytes()) == (b"one", b"two")


@pytest.mark.parametrize("top", ["", "20241234_Gildong/", "./", "홍길동/"])
def test_droppings_and_one_folder_on_top_are_fine(tmp_path, top):
    droppings = [".DS_Store", "lora_1/._x", "task_1_controlnet/__pycache__/a.pyc", ".ipynb_checkpoints/b.ipynb"]
    files = {top + name: content for name, content in GOOD.items()}
    files.update({top + name: b"\0" for name in droppings})
    files.update({f"__MACOSX/{top}._{WEIGHTS}": b"\0", "__MACOSX/a.zip": b""})
    files.update({f"{top}lora_2/Icon\r": b"", f"__MACOSX/{top}lora_2/._Icon\r": b"\0"})  # of a folder, on macOS
    folder = unpacked(packed(files), tmp_path)
    assert files_of(folder) == GOOD and find_items(folder).extra == ()


def test_folders_that_unpacking_and_packing_again_have_added_are_gone_into(tmp_path):
    files = {f"20241234_Kim/20241234_Kim/hand_in/{name}": content for name, content in GOOD.items()}
    inside = unpacked(packed(files), tmp_path)
    assert inside == tmp_path / "target" / "20241234_Kim" / "20241234_Kim" / "hand_in"
    assert find_items(inside).report is not None


@pytest.mark.parametrize(
    "files, there",
    [
        ({f"outer/inner/{name}": b"" for name in ("notes.txt", "code.py")}, "outer"),
        ({f"folder_{i}/{name}": b"" for i, name in enumerate(GOOD)}, "'folder_0', 'folder_1', 'folder_2', ..."),
        ({"notes.txt": b"", "folder/20241234.pdf": b""}, "'folder', 'notes.txt'"),
        ({}, "nothing"),
        ({"__MACOSX/20241234.pdf": b""}, "nothing"),
    ],
)
def test_two_folders_on_top_and_no_items_are_not(tmp_path, files, there):
    assert_refused(packed(files), tmp_path, f"On top there is .*{there}.* no item of the hand-in: put")


@pytest.mark.parametrize(
    "name, message",
    [
        ("../../evil.py", "leads out of"),
        ("task_1_controlnet/../../evil.py", "leads out of"),
        ("/etc/passwd", "absolute path"),
        ("C:/Windows/evil.py", "absolute path"),
        ("c:evil.py", "absolute path"),
        ("task_1_controlnet\\train.py", "backslash"),
        ("..\\..\\evil.py", "backslash"),
        (".", "without a name"),
        ("lora_1/bell\x07.txt", r"'lora_1/bell\\x07.txt' has control characters"),
        ("line\nbreak.py", "control characters"),
        ("lora_1/MyIcon\r", "control characters"),
        ("gpj.exe\u202e.jpg", "control characters"),
        ("a/" * 13 + "deep.py", "more than 12 folders deep"),
        ("a" * 201, "longer than 200 bytes"),
        ("task_1_controlnet", "'task_1_controlnet' is a file and a folder"),
        ("LORA_1/PyTorch_LoRA_weights.safetensors", "There are two files 'LORA_1/PyTorch"),
        ("more/code.zip", "'more/code.zip' is an archive inside the hand-in"),
        ("lora_2/WEIGHTS.TAR.GZ", "is an archive inside"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, message):
    assert_refused(packed({**GOOD, name: b"x"}), tmp_path, message)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_are_refused(tmp_path):
    buffer = io.BytesIO(packed(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("task_1_controlnet/train.py", "print('another')")
    assert_refused(buffer.getvalue(), tmp_path, "There are two files 'task_1_controlnet/train.py'")


def test_the_same_name_in_two_unicode_forms_is_refused(tmp_path):
    files = {**GOOD, "caf\u00e9.txt": b"1", "cafe\u0301.txt": b"2"}
    assert_refused(packed(files), tmp_path, "There are two files")


def test_a_hidden_end_of_the_name_is_refused(tmp_path):
    """Python cuts a name at a NUL; other programs do not."""
    data = packed({**GOOD, "lora_2/evil.py_hidden": b""}).replace(b"evil.py_hidden", b"evil.py\0hidden")
    assert_refused(data, tmp_path, r"evil.py\\x00hidden' has control characters")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(tmp_path, mode):
    message = "'lora_1/x' is a link" if stat.S_ISLNK(mode) else "'lora_1/x' is neither a plain file nor a folder"
    assert_refused(with_entry("lora_1/x", mode, b"/etc/passwd"), tmp_path, message)


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2000])
def test_encrypted_entries_are_refused(tmp_path, flag):
    data = patched(packed(GOOD), 8, struct.pack("<H", flag))
    assert_refused(data, tmp_path, f"'lora_2/{WEIGHTS}' is encrypted: pack it without a password")


def test_unusual_compression_is_refused(tmp_path):
    assert_refused(packed(GOOD, compression=zipfile.ZIP_LZMA), tmp_path, "compressed in an unusual way")


@pytest.mark.parametrize("name, flag", [("메모".encode("cp949"), 0), (b"\xff\xfe\xfd\xfc", 0x800)])
def test_names_in_other_encodings_are_refused(tmp_path, name, flag):
    data = packed({**GOOD, "lora_2/abcd.txt": b""}).replace(b"abcd", name)
    assert_refused(patched(data, 8, struct.pack("<H", flag)), tmp_path, "not UTF-8: rename it in plain letters")


def test_utf8_names_without_the_flag_are_what_macos_writes(tmp_path):
    name = "task_1_controlnet/그림.png"
    data = packed({**GOOD, "task_1_controlnet/abcdef.png": b"x"}).replace(b"abcdef.png", "그림.png".encode())
    assert unpacked(data, tmp_path).joinpath(name).read_bytes() == b"x"


# ---------------------------------------------------------------------------------------------------------------------
# Bombs


def test_bombs_by_ratio_are_refused_and_small_zeros_are_not(tmp_path):
    assert_refused(
        packed({**GOOD, "zeros.bin": bytes(12 * MB)}), tmp_path, "'zeros.bin' unpacks to more than 200 times"
    )
    untrained = {**GOOD, f"lora_1/{WEIGHTS}": bytes(3 * MB)}
    assert files_of(unpacked(packed(untrained), tmp_path)) == untrained


def test_bombs_by_count_are_refused(tmp_path):
    many = packed({**GOOD, **{f"task_1_controlnet/{i}.py": b"" for i in range(2000)}})
    assert_refused(many, tmp_path, "There are 2005 files, of at most 2000")


def test_a_list_of_files_that_would_fill_the_memory_is_not_read(tmp_path):
    data = patched(packed(GOOD), 12, struct.pack("<L", 90 * MB), END)
    assert_refused(data, tmp_path, "lists more than 2000 files")


def test_bombs_by_size_are_refused(tmp_path):
    limits = Limits(total_bytes=3000, file_bytes=1000)
    assert_refused(packed({**GOOD, "x.bin": noise(1001)}), tmp_path, "'x.bin' has 0 MB, of at most", limits)
    several = {f"{i}.bin": bytes(1000) for i in range(3)}
    assert_refused(packed({**GOOD, **several}), tmp_path, "together, of at most", limits)
    assert_refused(packed({**GOOD, "x": noise(4000)}, compression=0), tmp_path, "The zip has", limits)


@pytest.mark.parametrize(
    "name, advice", [(f"lora_1/{WEIGHTS}", "lower rank"), ("20241234.pdf", "its pictures smaller")]
)
def test_nobody_is_told_to_leave_out_an_item(tmp_path, name, advice):
    limits = Limits(file_bytes=1000)
    assert_refused(packed({**GOOD, name: noise(1001)}), tmp_path, f"has 0 MB, of at most 0: .*{advice}", limits)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [1, 90_000])
def test_sizes_that_lie_are_refused(tmp_path, compression, size):
    content = noise(30_000)
    data = packed({**GOOD, "lora_2/z": content}, compression=compression)
    assert_refused(patched(data, 24, struct.pack("<L", size)), tmp_path, "cannot be read|does not have the size")


def test_compressed_sizes_that_lie_are_refused(tmp_path):
    data = patched(packed(GOOD), 20, struct.pack("<L", 40 * MB))
    assert_refused(data, tmp_path, "The sizes that the zip declares cannot be true")


def test_zip64_is_refused(tmp_path):
    data = packed(GOOD)
    end = data.rindex(END)
    assert_refused(data[:end] + b"PK\6\7" + bytes(16) + data[end:], tmp_path, "ZIP64")


# ---------------------------------------------------------------------------------------------------------------------
# Damage


@pytest.mark.parametrize("data", [b"", b"Rar!\x1a\x07\x01\x00", b"%PDF-1.7", packed(GOOD)[:-30], END + bytes(3)])
def test_what_is_no_zip_is_refused(tmp_path, data):
    assert_refused(data, tmp_path, "'hand_in.zip' is not a zip archive, or not a whole one")


def test_damaged_bytes_never_do_anything_else(tmp_path):
    """What is flipped at random ends in the same files, or in an ArchiveError with nothing written."""
    data, source = packed(GOOD), random.Random(0)
    refused = 0
    for trial in range(150):
        broken = bytearray(data)
        for _ in range(source.choice((1, 3))):
            broken[source.randrange(len(data))] = source.randrange(256)
        folder = tmp_path / str(trial)
        folder.mkdir()
        try:
            unpacked(bytes(broken), folder)
        except ArchiveError:
            refused += 1
            assert [path.name for path in folder.iterdir()] == ["hand_in.zip"]
    assert refused > 50


@pytest.mark.parametrize("mode, number", [("xb", errno.ENOSPC), ("xb", errno.EROFS), ("rb", errno.EACCES)])
def test_a_machine_that_cannot_read_or_write_is_no_fault_of_the_hand_in(tmp_path, monkeypatch, mode, number):
    real = Path.open

    def refuse(self, how="r", *more, **options):
        if how == mode:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, how, *more, **options)

    (tmp_path / "hand_in.zip").write_bytes(packed(GOOD))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError) as failed:
        unpack(tmp_path / "hand_in.zip", tmp_path / "target")
    assert failed.value.errno == number
    assert [path.name for path in tmp_path.iterdir()] == ["hand_in.zip"]


def test_a_target_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "target").mkdir()
    assert files_of(unpacked(packed(GOOD), tmp_path)) == GOOD
    with pytest.raises(FileExistsError):
        unpacked(packed(GOOD), tmp_path)
    assert files_of(tmp_path / "target") == GOOD


# ---------------------------------------------------------------------------------------------------------------------
# Tar archives


def tarred(files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w:gz", **options) -> bytes:
    """A tar archive of the files, and of more members, each with its size in zeros for content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(max(member.size, 0))))
    return buffer.getvalue()


def member(name: str, type_: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type_, target, size
    return info


@pytest.mark.parametrize("top", ["", "./", "20241234_Gildong/", "홍길동/"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_archive_is_unpacked_to_plain_files(tmp_path, top, mode, format_):
    tool = member(f"{top}task_1_controlnet/tool.sh", size=3)
    tool.mode = 0o4777
    folders = [member(top or "lora_1", tarfile.DIRTYPE), member(f"{top}._x"), member(f"__MACOSX/{top}y.zip")]
    data = tarred({top + name: content for name, content in GOOD.items()}, tool, *folders, mode=mode, format=format_)
    folder = unpacked(data, tmp_path)
    assert files_of(folder) == {**GOOD, "task_1_controlnet/tool.sh": bytes(3)}
    assert stat.S_IMODE((folder / "task_1_controlnet/tool.sh").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "evil, message",
    [
        (member("../../evil.py"), "leads out of"),
        (member("/tmp/evil.py"), "absolute path"),
        (member("lora_1/bell\x07.txt"), "control characters"),
        (member("..\\evil.py"), "backslash"),
        (member("lora_1/x", tarfile.SYMTYPE, "/etc/passwd"), "'lora_1/x' is a link"),
        (member("lora_1/x", tarfile.LNKTYPE, "task_1_controlnet/train.py"), "'lora_1/x' is a link"),
        (member("lora_1/x", tarfile.FIFOTYPE), "neither a plain file nor a folder"),
        (member("lora_1/x", tarfile.CHRTYPE), "neither a plain file nor a folder"),
        (member("lora_1/x", tarfile.GNUTYPE_SPARSE), "neither a plain file nor a folder"),
        (member("task_1_controlnet/train.py"), "There are two files 'task_1_controlnet/train.py'"),
        (member("more/code.tgz"), "is an archive inside the hand-in"),
        (member("x.bin", size=60 * MB), "'x.bin' has 60 MB, of at most 50"),
    ],
)
def test_bad_members_are_refused(tmp_path, evil, message):
    assert_refused(tarred(GOOD, evil), tmp_path, message)


def test_a_folder_behind_a_link_is_not_written_to(tmp_path):
    (tmp_path / "outside").mkdir()
    link = member("lora_3", tarfile.SYMTYPE, str(tmp_path / "outside"))
    with pytest.raises(ArchiveError, match="'lora_3' is a link"):
        unpacked(tarred(GOOD, link, member("lora_3/x", size=3)), tmp_path)
    assert not list((tmp_path / "outside").iterdir())


def test_tar_bombs_are_refused(tmp_path):
    many = tarred({**GOOD, **{f"task_1_controlnet/{i}.py": b"" for i in range(2000)}})
    assert_refused(many, tmp_path, "more than 2000 files")
    bomb = gzip.compress(bytes(120 * MB), compresslevel=1)
    assert len(bomb) < MB
    assert_refused(bomb, tmp_path, "The archive unpacks to more than 100 MB: leave data sets out")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda data: data[:40] + b"?" + data[41:],
        lambda data: gzip.compress(gzip.decompress(data)[:1100]),
        lambda data: gzip.compress(gzip.decompress(data).replace(b"lora_1/", b"lora_9/")),
        lambda data: gzip.compress(b"print('no archive')"),
    ],
    ids=["no end", "half", "a byte", "a short tar", "a header that was changed", "no tar"],
)
def test_damaged_tar_archives_are_refused(tmp_path, damage):
    assert_refused(damage(tarred(GOOD)), tmp_path, "cannot be read|is damaged, or not a whole one")


def test_damaged_tar_bytes_never_do_anything_else(tmp_path):
    data, source = tarred(GOOD, mode="w"), random.Random(0)
    for trial in range(100):
        broken = bytearray(data)
        for _ in range(3):
            broken[source.randrange(len(GOOD) * 1024)] = source.randrange(256)
        folder = tmp_path / str(trial)
        folder.mkdir()
        try:
            unpacked(bytes(broken), folder)
        except ArchiveError as refused:
            assert str(refused).isprintable()
            assert [path.name for path in folder.iterdir()] == ["hand_in.zip"]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


# ---------------------------------------------------------------------------------------------------------------------
# Folders that Gradescope has unpacked


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in GOOD.items():
        path = tmp_path / "submission" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "submission"


def test_a_folder_is_copied_without_droppings(folder, tmp_path):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._x").write_bytes(b"")
    (folder / "task_1_controlnet" / "train.py").chmod(0o4777)
    copy = unpack(folder, tmp_path / "target")
    assert files_of(copy) == GOOD
    assert stat.S_IMODE((copy / "task_1_controlnet" / "train.py").stat().st_mode) == 0o644
    (tmp_path / "top").mkdir()
    folder.rename(tmp_path / "top" / "20241234")
    assert files_of(unpack(tmp_path / "top", tmp_path / "other")) == GOOD


def add_sparse_file(folder: Path) -> None:
    with (folder / "zeros.bin").open("wb") as file:
        file.truncate(10_000 * MB)


def add_undecodable_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.py")).write_bytes(b"")


@pytest.mark.parametrize(
    "add, message",
    [
        (lambda folder: (folder / "x.py").symlink_to("/etc/passwd"), "'x.py' is a link"),
        (lambda folder: (folder / "lora_1" / "up").symlink_to(".."), "'lora_1/up' is a link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' is neither a plain file nor a folder"),
        (add_sparse_file, "'zeros.bin' has 10000 MB, of at most 50"),
        (add_undecodable_name, "is not UTF-8"),
        (lambda folder: (folder / "a.zip").write_bytes(b""), "'a.zip' is an archive inside"),
        (lambda folder: (folder / "Train.PDF").mkdir() or (folder / "train.pdf").mkdir(), "two files"),
        (lambda folder: (folder / ("a/" * 13)).mkdir(parents=True), "folders deep"),
    ],
)
def test_bad_folders_are_refused(folder, tmp_path, add, message):
    add(folder)
    with pytest.raises(ArchiveError, match=message):
        unpack(folder, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["submission"]


def test_a_folder_with_too_much_is_refused(folder, tmp_path):
    for limits, message in ((Limits(files=8), "more than 8 files"), (Limits(total_bytes=30), "together, of at most 0")):
        with pytest.raises(ArchiveError, match=message):
            unpack(folder, tmp_path / "target", limits)


# ---------------------------------------------------------------------------------------------------------------------
# The items


def test_missing_items_say_what_to_do(tmp_path):
    (tmp_path / "lora_2").mkdir()
    (tmp_path / "lora_2" / "my_style.safetensors").write_bytes(b"")
    items = find_items(tmp_path)
    assert (items.report, items.task_1, items.lora_1, items.lora_2) == (None, None, None, None)
    report, task_1, lora_1, lora_2 = items.problems
    assert "put one PDF" in report and "put your folder task_1_controlnet/" in task_1
    assert "Task 2-1 is missing: put pytorch_lora_weights.safetensors" in lora_1
    assert "lora_2/ has 'my_style.safetensors': the LoRA of Task 2-2 must be named" in lora_2


def test_surprises_are_listed_and_a_second_pdf_is_a_problem(folder):
    (folder / "notes.txt").write_bytes(b"")
    (folder / "tiny_sd").mkdir()
    (folder / "lora_1" / "optimizer.bin").write_bytes(b"")
    assert find_items(folder).extra == ("lora_1/optimizer.bin", "notes.txt", "tiny_sd")
    assert find_items(folder).report.name == "20241234.pdf"
    (folder / "draft.PDF").write_bytes(b"")
    items = find_items(folder)
    assert items.report.name == "20241234.pdf" and not items.problems and "draft.PDF" in items.extra
    (folder / "20241234.pdf").rename(folder / "final.pdf")
    items = find_items(folder)
    assert items.report is None and items.problems == (
        "There are 2 PDFs beside task_1_controlnet/ ('draft.PDF', 'final.pdf'): leave only the report, named after "
        "your student id.",
    )
