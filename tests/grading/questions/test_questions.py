"""The questions drawn from a student id: the key is right by the library's models, and the page is whole and the same.

What is right is found without our models, in `library_answers.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from forked_key import ForkedKey
from library_answers import RIGHT, library
from pypdf import PdfReader

from grading.gradescope.pack import needed_files
from grading.handed_out.banners import TODOS
from grading.questions import __main__ as program
from grading.questions import key as key_program
from grading.questions import sheet as sheets
from grading.questions.drawing import Configuration, Draw, draw_configuration
from grading.questions.sheet import (
    QUESTIONS,
    Asked,
    Sheet,
    ask,
    draw_sheet,
    requests,
    write_answer,
)
from grading.questions.typeset import typeset
from grading.starter.make import write_starter
from processes import FORKS, run_python

ROOT = Path(__file__).resolve().parents[3]
FORKED_KEY = Path(__file__).with_name("forked_key.py")
FIFTY = [str(20240000 + 137 * i) for i in range(50)]


def all_questions(student_id: str, configuration: Configuration | None = None) -> Sheet:
    """A sheet with every question there is, about the id's own models or others."""
    key = ("", student_id)
    configuration = configuration or draw_configuration(Draw(*key, "configuration"))
    return Sheet(student_id, configuration, tuple(ask(question, key, configuration) for question in QUESTIONS.values()))


# ---------------------------------------------------------------------------------------------------------------------
# What is right


@pytest.fixture(scope="module")
def fifty() -> list[tuple[Sheet, list[str]]]:
    """Every question drawn for fifty ids, with the answers of the key, which is told them as its process is.

    Models are what takes the time: ids whose models have the same blocks and layers, of which the questions draw one,
    share those of the first, one after the other; and what is asked twice is answered once.
    """
    alike: dict[tuple[Any, ...], Configuration] = {}
    every, answers = [], {}
    for student_id in FIFTY:
        own = draw_configuration(Draw("", student_id, "configuration"))
        every.append(all_questions(student_id, alike.setdefault((own.down_block_types, own.layers_per_block), own)))
    every.sort(key=lambda sheet: str(sheet.configuration))  # the key keeps the models of the last two
    for asked in requests(every):
        told = json.dumps(asked)
        if told not in answers:
            answers[told] = key_program.answer(json.loads(told))
    return [(sheet, [answers[json.dumps(asked)] for asked in requests([sheet])]) for sheet in every]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_key_is_right_for_fifty_ids(name, fifty):
    for sheet, answers in fifty:
        (at,) = (i for i, one in enumerate(sheet.asked) if one.question.name == name)
        right = RIGHT[name](library(sheet.configuration), sheet.asked[at].drawn)
        assert answers[at] == write_answer(right), (sheet.student_id, sheet.asked[at].text)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked

SOME = [str(20250000 + 31 * i) for i in range(300)]


def content(sheet: Sheet) -> tuple[Any, ...]:
    return (sheet.configuration, *(one.text for one in sheet.asked))


def test_there_are_enough_questions_on_each_place():
    assert len(QUESTIONS) >= 30 and QUESTIONS.keys() == RIGHT.keys()
    assert f"six of {len(QUESTIONS)} questions" in (ROOT / "docs" / "teacher.md").read_text(encoding="utf-8")
    for todo in TODOS:
        assert sum(question.place == todo for question in QUESTIONS.values()) >= 6


def test_each_page_asks_six_questions_on_all_five_places():
    asked, twice = set(), set()
    for student_id in SOME:
        sheet = draw_sheet(student_id)
        places = [one.question.place for one in sheet.asked]
        assert len(places) == 6 and set(places) == set(TODOS) and places == sorted(places)
        twice.add(next(place for place in places if places.count(place) == 2))
        assert len({one.question.kind for one in sheet.asked}) == 6, "no two questions ask for the same thing"
        asked.update(one.question.name for one in sheet.asked)
    assert twice == set(TODOS), "the sixth question is on any place"
    assert asked == QUESTIONS.keys(), "no question is never asked"


def test_the_same_id_has_the_same_page_and_no_two_ids_have():
    pages = [content(draw_sheet(student_id)) for student_id in SOME]
    assert pages == [content(draw_sheet(student_id)) for student_id in SOME]
    assert len(set(pages)) == len(SOME)
    assert len({page[0] for page in pages}) > 0.98 * len(SOME), "also the configurations differ"
    salted = [content(draw_sheet(student_id, "2026-fall")) for student_id in SOME]
    assert not set(pages) & set(salted) and len(set(salted)) == len(SOME)


def test_the_numbers_differ_between_ids():
    for question in QUESTIONS.values():
        answers = set()
        for sheet in map(all_questions, FIFTY[:12]):
            (one,) = (one for one in sheet.asked if one.question is question)
            answers.add((one.text, sheet.configuration))
        assert len(answers) == 12, question.name


def test_nothing_is_left_open_in_a_text():
    for sheet in map(all_questions, SOME[:20]):
        for one in sheet.asked:
            assert one.text.count("`") % 2 == 0 and not re.search(r"[{}]|\s\s|None", one.text), one.text
            assert one.text.endswith(("?", ".")) and one.question.why.endswith(".")


@pytest.mark.parametrize(
    "answer, text",
    [
        (12345, "12,345"),
        (0.37947, "0.379"),
        ((2, 1280, 8, 8), "(2, 1280, 8, 8)"),
        ([5, 4, 3], "5, 4, 3"),
        ([7, (2, 64, 4, 4)], "7; (2, 64, 4, 4)"),
        ("down_blocks.0.attentions.1", "down_blocks.0.attentions.1"),
    ],
)
def test_answers_as_one_writes_them(answer, text):
    assert write_answer(answer) == text


# ---------------------------------------------------------------------------------------------------------------------
# The page


def squeezed(text: str) -> str:
    """Without what lines and words are broken by."""
    return re.sub(r"[\s\u200b`]", "", text)


def read(pdf: bytes) -> str:
    (page,) = PdfReader(BytesIO(pdf)).pages
    return squeezed(page.extract_text())


IDS = ["20241234", "20245678", SOME[0], SOME[1]]


class Interrupted:
    """The program, called in this process for IDS with their keys, and interrupted at the last."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.answered: list[tuple[Sheet, list[str]]] = []
        self.started: list[subprocess.Popen | ForkedKey] = []
        start = ForkedKey if FORKS else subprocess.Popen
        patch.setattr(
            subprocess, "Popen", lambda *args, **kw: self.started.append(start(*args, **kw)) or self.started[-1]
        )
        patch.setattr(program, "typeset", self.typeset)
        with pytest.raises(SystemExit) as stopped:
            call(patch, "--student-id", *IDS, "--answers", "--output", str(folder))
        self.message = str(stopped.value)

    def typeset(self, sheet: Sheet, answers: list[str] | None = None) -> bytes:
        if sheet.student_id == IDS[-1]:
            raise KeyboardInterrupt
        if answers is not None:
            self.answered.append((sheet, answers))
        return typeset(sheet, answers)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Interrupted:
    with pytest.MonkeyPatch.context() as patch:
        return Interrupted(tmp_path_factory.mktemp("interrupted"), patch)


@pytest.fixture
def answered(interrupted) -> list[tuple[Sheet, list[str]]]:
    return interrupted.answered


def test_the_page_shows_all_and_no_answer(answered):
    assert [sheet for sheet, _ in answered] == [draw_sheet(student_id) for student_id in IDS[:3]]
    for sheet, answers in answered:
        page, key = read(typeset(sheet)), read(typeset(sheet, answers))
        for one, answer in zip(sheet.asked, answers):
            for text in (page, key):
                assert squeezed(one.text) in text
                assert sheet.student_id in text and squeezed(str(sheet.configuration.block_out_channels)) in text
            assert squeezed(answer + one.question.why) in key and squeezed(one.question.why) not in page
        assert page.count("TODO(") >= 6 and "Name" in page and "Notforstudents" in key


def test_the_longest_questions_fit_on_one_page():
    configuration = replace(
        draw_configuration(Draw("", "20240000", "configuration")),
        block_out_channels=(64, 112, 160, 208),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    )
    asked = [ask(question, ("", "20240000"), configuration) for question in QUESTIONS.values()]
    longest: list[Asked] = sorted(asked, key=lambda one: len(one.text) + len(one.question.why))[-6:]
    sheet = Sheet("20240000", configuration, tuple(longest))
    for answers in (None, [", ".join(["208"] * 16)] * 6):
        text = read(typeset(sheet, answers))
        assert all(squeezed(one.text) in text for one in longest)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "grading.questions", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


STAND_IN = """
import json, os, sys
for asked in json.load(sys.stdin):
    print(json.dumps(f"{asked['name']} in {os.getcwd()} with {os.environ['PYTHONPATH']}"), flush=True)
print("a warning", file=sys.stderr)
"""


def test_the_key_is_a_process_of_its_own_with_task_1_on_its_path(tmp_path, monkeypatch):
    """A program without PyTorch stands in for the key."""
    (tmp_path / "grading" / "questions").mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("questions/__init__.py", ""), ("questions/key.py", STAND_IN)):
        (tmp_path / "grading" / name).write_text(text)
    monkeypatch.setattr(sheets, "ROOT", tmp_path)
    monkeypatch.setattr(sheets, "TASK_1", tmp_path / "task_1")
    monkeypatch.setenv("PYTHONPATH", "more")
    asked = [draw_sheet(student_id) for student_id in IDS]
    where = f"in {tmp_path} with {os.pathsep.join([str(tmp_path / 'task_1'), str(tmp_path), 'more'])}"
    expected = [[f"{one.question.name} {where}" for one in sheet.asked] for sheet in asked]
    assert list(sheets.compute_answers(asked)) == expected


def test_the_program_writes_the_same_bytes_again(interrupted, tmp_path):
    """With other hash seeds: `interrupted` has this process's own, and a forked program that of the fork server."""
    program = [FORKED_KEY] if FORKS else ["-m", "grading.questions"]
    with_key = ("--student-id", *IDS[:2], "--output", "1", "--answers")
    ended = run_python(*program, *with_key, folder=tmp_path, environment={"PYTHONHASHSEED": "1"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [f"1/{i}{end}.pdf" for i in IDS[:2] for end in ("", "-answers")]
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["20241234-answers.pdf", "20241234.pdf", "20245678-answers.pdf", "20245678.pdf"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (interrupted.folder / name).read_bytes()
    ended = run(tmp_path, "--student-id", "20241234", PYTHONHASHSEED="2")
    assert ended.returncode == 0 and ended.stdout == "build/questions/20241234.pdf\n"
    assert [path.name for path in (tmp_path / "build" / "questions").iterdir()] == ["20241234.pdf"]
    without_key = (tmp_path / "build" / "questions" / "20241234.pdf").read_bytes()
    assert without_key == (tmp_path / "1" / "20241234.pdf").read_bytes()
    ended = run(tmp_path, "--student-id", "20241234", "--salt", "a word")
    assert (tmp_path / "build" / "questions" / "20241234.pdf").read_bytes() != without_key


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["questions", *arguments])
    program.main()


@pytest.mark.parametrize(
    "wrong", ["2024123", "202412345", "19991234", "abcdefgh", "../20241234", "", "２０２４１２３４"]
)
def test_a_wrong_id_is_refused_before_anything_is_written(wrong, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--student-id", "20241234", wrong, "--output", str(tmp_path / "out"))
    assert (
        str(caught.value)
        == f"Error: The student id {wrong!r} must be eight digits that begin with 20, such as 20241234."
    )
    assert not (tmp_path / "out").exists()


def test_without_typst_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(SystemExit, match="Error: The package typst, which makes the PDF, .*: pip install typst"):
        call(monkeypatch, "--student-id", "20241234", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^Error: .*file is a file: choose another folder with --output\.$"):
        call(monkeypatch, "--student-id", "20241234", "--output", str(tmp_path / "file"))


def test_interrupted_it_says_how_far_it_came_and_leaves_no_process(interrupted):
    assert "Stopped: the pages of 3 of 4 students are written" in interrupted.message
    written = sorted(path.name for path in interrupted.folder.iterdir())
    assert written == sorted(f"{student_id}{end}.pdf" for student_id in IDS[:3] for end in ("", "-answers"))
    assert [process.poll() is not None for process in interrupted.started] == [True]


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "starter"
    write_starter(folder)
    return folder


def test_without_the_solution_there_is_no_key(starter, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "TASK_1", starter / "task_1_controlnet")
    if FORKS:
        monkeypatch.setattr(subprocess, "Popen", ForkedKey)
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--student-id", "20241234", "--answers", "--output", str(tmp_path / "out"))
    message = str(caught.value)
    assert message.startswith("Error: The answers cannot be computed with the models in task_1_controlnet/: ")
    assert "NotImplementedError: TODO (1)" in message and message.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_students_do_not_get_the_questions(starter):
    given = [path for path in starter.rglob("*") if path.is_file()]
    assert not [path for path in given if "questions" in path.relative_to(starter).as_posix()]
    texts = [one.question.text[:40] for one in all_questions("20240000").asked]
    for path in given:
        if path.suffix in (".py", ".md", ".ipynb", ".typ", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert not [one for one in texts if one in text], path
    assert not [name for name in needed_files() if "questions" in name.as_posix()]


def test_this_process_imports_no_task_code():
    code = "import sys, grading.questions.__main__\nprint([n for n in sys.modules if n.split('.')[0] in %r])"
    forbidden = ("torch", "diffusion", "diffusers")
    command = [sys.executable, "-c", code % (forbidden,)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert json.loads(ended.stdout.replace("'", '"')) == [], ended.stdout + ended.stderr
