"""Every hand-in of a folder is graded, and whatever is none is named with the reason."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from pathlib import Path

import pytest

from grading.autograder.run import grade_all, grade_on_gradescope
from grading.files.archive import find_items, unpack
from grading.files.collection import hand_ins, left_out
from grading.files.items import WEIGHTS_FILE
from grading.grades.by_hand import Entry, Points, write_store
from grading.grades.numbers import Numbers
from grading.grades.results import not_graded, results_of
from grading.grades.rubric import Evidence, grade
from hand_ins import write_folder, write_zip
from stand_ins import UNPACK

NUMBERS = Numbers()
ITEMS = {
    "20241234.pdf": b"%PDF-1.7",
    "task_1_controlnet/train.py": b"",
    f"lora_1/{WEIGHTS_FILE}": b"one",
    f"lora_2/{WEIGHTS_FILE}": b"two",
}


def below(folder: str, files: dict[str, bytes] = ITEMS) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def reasons(folder: Path) -> dict[str, str]:
    """Why something in a folder is no hand-in, by name."""
    parts = [sentence.removesuffix(".").rpartition(": ") for sentence in left_out(folder)]
    return {name: reason for reason, _, names in parts for name in names.split(", ")}


def found(folder: Path, *files: str, **contents: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """What is found in a folder with these files: the hand-ins' places by name, and the reasons for the others."""
    write_folder({**dict.fromkeys(files, b"x"), **contents}, folder)
    return {name: str(path.relative_to(folder)) for name, path in hand_ins(folder).items()}, reasons(folder)


def test_archives_in_any_case_and_of_any_kind_are_hand_ins(tmp_path):
    names = ["1.zip", "2.ZIP", "3.tar.gz", "4.tgz", "5.tar", "6.Tar.Gz", "7.b.zip", "late/8.zip", "late/more/9.Zip"]
    assert found(tmp_path, *names) == (
        {"1": "1.zip", "2": "2.ZIP", "3": "3.tar.gz", "4": "4.tgz", "5": "5.tar", "6": "6.Tar.Gz", "7.b": "7.b.zip",
         "late/8": "late/8.zip", "late/more/9": "late/more/9.Zip"}, {},
    )  # fmt: skip


EXPORTS = {
    "a folder for each student": (
        {**below("student_1"), "student_2/2.zip": b"x"},
        {"student_1": "student_1", "student_2/2": "student_2/2.zip"},
    ),
    "Moodle": (
        {"Gildong Hong_12_assignsubmission_file_/h.zip": b"x", "김 철수_13_assignsubmission_file_/k.zip": b"x"},
        {
            "Gildong Hong_12_assignsubmission_file_/h": "Gildong Hong_12_assignsubmission_file_/h.zip",
            "김 철수_13_assignsubmission_file_/k": "김 철수_13_assignsubmission_file_/k.zip",
        },
    ),
    "Canvas": (
        {"honggildong_LATE_12_34_20241234_Hong-1.zip": b"x", "kim_13_35_20241235_Kim.tar-1.gz": b"x"},
        {
            "honggildong_LATE_12_34_20241234_Hong-1": "honggildong_LATE_12_34_20241234_Hong-1.zip",
            "kim_13_35_20241235_Kim.tar-1": "kim_13_35_20241235_Kim.tar-1.gz",
        },
    ),
    "Gradescope": (
        {**below("submission_1"), **below("submission_2/20241235_Kim")},
        {"submission_1": "submission_1", "submission_2/20241235_Kim": "submission_2/20241235_Kim"},
    ),
    "only a report": ({"student_1/20241234.pdf": b"%PDF", "2.zip": b"x"}, {"2": "2.zip", "student_1": "student_1"}),
    "code that is called otherwise": (
        {"student_1/20241234.pdf": b"%PDF", "student_1/code/train.py": b"", "2.zip": b"x"},
        {"2": "2.zip", "student_1": "student_1"},
    ),
    "the same name twice": (
        {"1.zip": b"x", "1.ZIP": b"x", **below("2"), "2.tgz": b"x"},
        {"1.ZIP": "1.ZIP", "1.zip": "1.zip", "2": "2", "2.tgz": "2.tgz"},
    ),
    "one hand-in, unpacked": (ITEMS, {"in": "."}),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_of_platforms_are_read_as_they_are(tmp_path, name):
    files, expected = EXPORTS[name]
    assert found(tmp_path / "in", **files) == (expected, {})


LEFT_OUT = {
    "._1.zip": "has left it behind",
    "__MACOSX/2.zip": "has left it behind",
    "late/.DS_Store": "has left it behind",
    "desktop.ini": "has left it behind",
    "~$2.zip": "has left it behind",
    "3.txz": "only archives that end in",
    "3.zip.001": "only archives that end in",
    "3.rar": "only archives that end in .zip, .tar, .tgz, .gz are read",
    "student_4/4.7Z": "only archives that end in",
    "grades.txt": "neither an archive nor a folder with items of a hand-in",
    "submission_metadata.yml": "neither an archive nor a folder",
    "student_5/notes.docx": "there is no hand-in in it",
    "student_6/more/deep/notes.txt": "there is no hand-in in it",
    "student_7/late/notes.txt": "there is no hand-in in it",
    "assignment.pdf": "neither an archive nor a folder",
}


def test_what_is_no_hand_in_is_named_with_the_reason(tmp_path):
    graded, others = found(tmp_path, "1.zip", "late/8.zip", *LEFT_OUT)
    assert graded == {"1": "1.zip", "late/8": "late/8.zip"}
    tops = {"__MACOSX/2.zip": "__MACOSX", **{name: name[:9] for name in LEFT_OUT if name[-4:] in (".txt", "docx")}}
    tops["grades.txt"] = "grades.txt"
    expected = {tops.get(name, name): words for name, words in LEFT_OUT.items()}
    assert others.keys() == expected.keys()
    assert all(words in others[name] for name, words in expected.items())


def test_an_archive_unpacked_among_others_hides_none_of_them(tmp_path):
    """Its items on top would otherwise make one hand-in of the whole course."""
    graded, others = found(tmp_path, "1.zip", "2.zip", *below("3"), "20241234.pdf", "lora_1/adapter.safetensors")
    assert graded == {"1": "1.zip", "2": "2.zip", "3": "3"}
    assert others.keys() == {"lora_1", "20241234.pdf"} and "lie among others" in others["lora_1"]
    (tmp_path / "alone").mkdir()
    assert found(tmp_path / "alone", *ITEMS, "code.zip")[0] == {"alone": "."}


def test_links_pipes_and_abysses_are_named_and_not_entered(tmp_path):
    (tmp_path / "1.zip").write_bytes(b"x")
    (tmp_path / "link.zip").symlink_to(tmp_path / "1.zip")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / ("a/" * 30)).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / os.fsdecode("홍길동.zip".encode("cp949"))).write_bytes(b"x")
    (other,) = hand_ins(tmp_path).keys() - {"1"}
    assert other.encode("utf-8") and "\ufffd" in other, "a name that no program could write"
    others = {name.strip("/a") or "a": reason for name, reason in reasons(tmp_path).items()}
    words = {"link.zip": "a link", "loop": "a link", "pipe.zip": "plain file", "a": "12 folders", "empty": "no hand-in"}
    assert others.keys() == words.keys() and all(words[name] in others[name] for name in words)


def test_a_name_counts_as_it_is_read(tmp_path):
    """macOS takes Hangul apart, which other programs show as single letters."""
    (hand_in,), _ = found(tmp_path, "\u1112\u1169\u11bc.zip")
    assert hand_in == "홍"


def test_no_name_commands_a_terminal(tmp_path):
    (tmp_path / "evil\x1b[31m\n\u202e.zip").write_bytes(b"x")
    (tmp_path / "b\n.txt").write_bytes(b"x")
    assert list(hand_ins(tmp_path)) == [r"evil\x1b[31m\n\u202e"]
    assert left_out(tmp_path)[0].endswith(r": b\n.txt.")


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["1.rar", "assignment.pdf"], ["._1.zip"]])
def test_a_folder_without_hand_ins_says_so(tmp_path, files):
    with pytest.raises(FileNotFoundError, match="There are no hand-ins in .* Not graded, as .*"):
        found(tmp_path, *files)


def test_one_archive_is_taken_whatever_it_is_called(tmp_path):
    (tmp_path / "20241234_Kim.handin").write_bytes(b"x")
    assert list(hand_ins(tmp_path / "20241234_Kim.handin")) == ["20241234_Kim.handin"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hand_ins(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------------------------
# The page, the table and what is printed


def packed_tar(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in ITEMS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_all_of_a_folder_is_graded_or_named(tmp_path, graders, capsys):
    graders(results_of(grade(Evidence({}, unreadable="It has nothing."), NUMBERS), NUMBERS, 1, []), UNPACK)
    folder, out = tmp_path / "in", tmp_path / "out"
    tars = {"3.tar.gz": packed_tar("w:gz"), "4.tar": packed_tar("w"), "5.zip": packed_tar("w:gz")}
    write_folder({**tars, **below("6"), "._1.zip": b"x", "7.rar": b"x", "<b>.txt": b"x"}, folder)
    (folder / "late").mkdir()
    write_zip(ITEMS, folder / "late" / "2.ZIP")
    grade_all(folder, out, tmp_path / "prepared", [], jobs=1)
    names = ["3", "4", "5", "6", "late/2"]
    rows = list(csv.reader((out / "grades.csv").open(newline="", encoding="utf-8-sig")))
    assert [row[0] for row in rows[1:]] == names
    printed, page = capsys.readouterr().out, (out / "index.html").read_text()
    for name in names:
        assert f"{name}: 0 points" in printed and f">{name}</a>" in page
    for sentence in ("a program or an operating system has left it behind: ._1.zip.", ".gz are read: ask for one"):
        assert sentence in printed and sentence in page
    assert "0 pairs of 5 hand-ins" in printed and 'id="likeness"' in page
    assert "a hand-in: <b>.txt." in printed and "a hand-in: &lt;b&gt;.txt." in page


def test_a_second_start_that_is_stopped_loses_nobody_from_the_table(tmp_path, graders, monkeypatch):
    graders(results_of(grade(Evidence({}, unreadable="It has nothing."), NUMBERS), NUMBERS, 1, []), UNPACK)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("1", "2", "3"):
        write_zip(ITEMS, folder / f"{name}.zip")
    grade_all(folder, out, tmp_path / "prepared", [], jobs=1)
    write_zip({**ITEMS, "more.txt": b"handed in again"}, folder / "2.zip")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("grading.autograder.run.grade_into", stopped)
    with pytest.raises(KeyboardInterrupt):
        grade_all(folder, out, tmp_path / "prepared", [], jobs=1)
    rows = list(csv.reader((out / "grades.csv").open(newline="", encoding="utf-8-sig")))
    assert [row[0] for row in rows[1:]] == ["1", "3"]


def test_points_that_were_given_for_other_files_are_told(tmp_path, graders):
    graders(results_of(grade(Evidence({}, unreadable="It has nothing."), NUMBERS), NUMBERS, 1, []), UNPACK)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def page() -> str:
        grade_all(folder, out, tmp_path / "prepared", [], jobs=1)
        return (out / "index.html").read_text()

    for name in ("1", "2"):
        write_zip(ITEMS, folder / f"{name}.zip")
    out.mkdir()
    given = [Entry("2026-11-30T10:00:00.000Z", name, "task_1_1", 5) for name in ("1", "2")]
    write_store(out, Points("a page").with_entries(given))
    assert "was given before" not in page()
    write_zip({**ITEMS, "more.txt": b"handed in again"}, folder / "2.zip")
    for _ in range(2):  # also when it is taken up
        shown = page()
        assert shown.count("was given before other files came of this hand-in") == 1
        assert "Task 1-1 of &#x27;2&#x27;, 5, was given before" in shown
    again = Entry("2999-11-30T10:00:00.000Z", "2", "task_1_1", 4)  # looked at once more
    write_store(out, Points("a page").with_entries([*given, again]))
    assert "was given before" not in page()


def test_what_the_grader_could_not_grade_has_no_points(tmp_path, graders, capsys):
    graders(not_graded("it took longer than 120 minutes, as this machine is too slow.", NUMBERS), UNPACK)
    path = write_zip(ITEMS, tmp_path / "1.zip")
    grade_all(path, tmp_path / "out", tmp_path / "prepared", [], jobs=1)
    assert "1: This could not be graded: it took longer than 120 minutes, as this machine" in capsys.readouterr().out
    (_, row) = list(csv.reader((tmp_path / "out" / "grades.csv").open(newline="", encoding="utf-8-sig")))
    assert row[:6] == ["1", "", "", "", "", ""] and "too slow" in row[6]
    page = (tmp_path / "out" / "index.html").read_text().replace("<option>0</option>", "")  # what a teacher may give
    assert "0 points" not in page and ">0<" not in page and "0 of 10" not in page and "too slow" in page


@pytest.mark.parametrize("name", ["20241234_Kim.tar.gz", "20241234_Kim.ZIP"])
def test_gradescope_unpacks_some_archives_only(tmp_path, graders, name):
    results = graders(results_of(grade(Evidence({}, unreadable="x"), NUMBERS), NUMBERS, 1, []), UNPACK)
    write_folder({name: packed_tar("w:gz"), "__MACOSX/a": b""}, tmp_path / "submission")
    assert grade_on_gradescope(tmp_path, tmp_path / "prepared", []) == results


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_archive_is_unpacked_as_a_zip_is(tmp_path, mode):
    (tmp_path / "in.zip").write_bytes(packed_tar(mode))  # its name says nothing
    items = find_items(unpack(tmp_path / "in.zip", tmp_path / "out"))
    assert items.problems == () and items.lora_2.read_bytes() == b"two"
