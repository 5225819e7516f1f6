"""The grader: points by the rubric, results whatever happens, the teacher's files, and the zip for Gradescope."""

from __future__ import annotations

import csv
import errno
import hashlib
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.numpy import save

from grading.autograder import run as autograder
from grading.autograder import todos
from grading.autograder.alignment import MODEL, WEIGHTS, Shared, evaluate
from grading.autograder.job import supervise
from grading.autograder.loras import judge_files, judge_loras, judge_norm, judge_pictures, keep_plain
from grading.autograder.pictures import calm, change, contrast, read_picture, smoothness
from grading.autograder.run import LAST_SECONDS, folder_names, grade_all, grade_into, grade_on_gradescope
from grading.autograder.todos import Judged
from grading.grades.numbers import Numbers, with_settings
from grading.grades.results import (
    COLUMNS,
    in_short,
    is_graded,
    not_graded,
    quick_look,
    results_of,
    write_atomically,
    write_table,
)
from grading.grades.rubric import NOT_TRAINED, Alignment, Evidence, Lora, Todos, block, grade, look_quickly
from grading.grades.submission import Attempt, counts
from grading.grades.teacher_page import page, render
from grading.gradescope.pack import SETUP, write_autograder
from grading.handed_out.banners import TODOS
from grading.handed_out.record import ROOT, Change
from grading.sandbox.cores import usable_cores
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.trusted import GraderError, run_trusted
from hand_ins import LORA_2, hand_in, lora_tensors, write_zip
from hub_models import save_small_clip, save_small_dino
from small_bases import small_base
from stand_ins import ready_at_once

NUMBERS = Numbers()
PROMPT = "sea green circle with a light cyan background"
RIGHT = Todos({todo: () for todo in TODOS})
WRONG = Todos({**RIGHT.problems, "3": ("TODO (3): the residuals are not kept.",)})
ALIGNED = Alignment(ious=(0.9, 0.8, 0.9, 0.8, 0.9), held_out=(0.7, 0.9))
LOST = Alignment(ious=(0.1,) * 5, held_out=(0.2, 0.1))
GOOD = {"lora_1": Lora(None, "A LoRA."), "lora_2": Lora(None, "A LoRA.")}
EVIDENCE = Evidence({}, todos=RIGHT, alignment=ALIGNED, loras=GOOD)


def with_rules(**rules) -> Numbers:
    return replace(NUMBERS, rules=replace(NUMBERS.rules, **rules))


def graded(evidence: Evidence, numbers: Numbers = NUMBERS) -> tuple[float, float, str]:
    """The points of both tasks, and all that is said."""
    scores = grade(evidence, numbers)
    points = [score.score for score in scores if score.max_score]
    assert len(points) == 2 and all(score.score == 0 for score in scores if not score.max_score)
    return points[0], points[1], "\n".join(f"{score.name} {score.passed} {score.output}" for score in scores)


# ---------------------------------------------------------------------------------------------------------------------
# The rubric


def test_task_1_needs_aligned_pictures_and_right_todos():
    assert graded(EVIDENCE)[0] == 10
    points, _, said = graded(replace(EVIDENCE, alignment=LOST))
    assert points == 5 and "do not align" in said
    assert f"0.11 (mean IoU of 7 conditions; at least {NUMBERS.least_iou:.2f}" in said
    points, _, said = graded(replace(EVIDENCE, todos=WRONG))
    assert points == 5 and "TODO (3) is wrong" in said and "the residuals are not kept" in said
    assert "Task 1: TODO (3) False" in said and "Task 1: TODO (2) True" in said
    points, _, said = graded(replace(EVIDENCE, todos=WRONG, alignment=LOST))
    assert points == 5 and "do not align" in said and "the residuals are not kept" in said
    crashed = Alignment("the training ended with status 1 (RuntimeError: x).", log="Traceback\nRuntimeError: x")
    points, _, said = graded(replace(EVIDENCE, todos=WRONG, alignment=crashed))
    assert (
        points == 0
        and "cannot be executed" in said
        and "```\nTraceback\nRuntimeError: x\n```" in said
        and "not kept" in said
    )
    assert graded(EVIDENCE, replace(NUMBERS, least_iou=0.95))[0] == 5


def test_task_2_needs_two_good_loras():
    bad = Lora("It is noise.")
    assert graded(EVIDENCE)[1] == 10
    points = graded(replace(EVIDENCE, loras={**GOOD, "lora_2": bad}))
    assert points[1] == 5 and "lora_2: It is noise." in points[2]
    both = replace(EVIDENCE, loras={"lora_1": bad, "lora_2": bad})
    assert graded(both)[1] == 0
    assert graded(both, with_rules(both_loras_wrong=5.0))[1] == 5


def test_a_missing_item_makes_everything_zero_unless_the_teacher_is_milder():
    missing = replace(EVIDENCE, missing={"lora_1": "lora_1 is missing."})
    task_1, task_2, said = graded(missing)
    assert (task_1, task_2) == (0, 0) and "Without this rule it would be 10 points" in said
    assert graded(missing, with_rules(missing_item=0.0))[:2] == (10, 5)
    for item in ("report", "code"):
        without = Evidence({item: "It is missing."}, todos=RIGHT, alignment=ALIGNED, loras=GOOD)
        expected = (0, 0) if item == "report" else (0, 10)
        assert graded(without, with_rules(missing_item=0.0))[:2] == expected
        assert graded(without)[:2] == (0, 0)


def test_changes_outside_the_banners_are_the_teachers_choice():
    changed = replace(EVIDENCE, changes=(Change("train.py", "train.py is changed.", "-a\n+b"),))
    task_1, task_2, said = graded(changed)
    assert (task_1, task_2) == (10, 10) and "the teacher decides" in said and "```\n-a\n+b\n```" in said
    task_1, task_2, said = graded(changed, with_rules(changes=1.0))
    assert (task_1, task_2) == (0, 0) and "is changed, the score is zero" in said and "the teacher decides" not in said
    long = replace(EVIDENCE, report="The report has 3 pages.")
    assert graded(long)[:2] == (10, 10)
    assert graded(long, with_rules(long_report=1.0))[:2] == (0, 0)


def test_numbers_can_be_set_and_wrong_ones_are_refused():
    changed = with_settings(NUMBERS, ["train_steps=7", "least_iou=1", "lora_prompts=('a',)", "visibility=hidden"])
    assert (changed.train_steps, changed.least_iou, changed.lora_prompts) == (7, 1.0, ("a",))
    assert changed.rules.visibility == "hidden" and changed.seed == NUMBERS.seed
    wrong = ("steps=7", "train_steps", "train_steps=many", "train_steps=7.5", "missing_item=1")
    for setting in (*wrong, "train_steps=-1", "prove_steps=4", "least_iou=1e999", "lora_norm=(-1.0, 2.0)"):
        with pytest.raises(ValueError, match=setting.partition("=")[0]):
            with_settings(NUMBERS, [setting])


# ---------------------------------------------------------------------------------------------------------------------
# TODO places


def test_a_todo_is_judged_again_alone_before_it_is_blamed(monkeypatch):
    runs = []

    def run(parts, asked, seconds, numbers, hidden):
        runs.append((tuple(asked), seconds))
        if asked == TODOS:  # (2) ends the program, so that (3) and the others have no results
            return {todo: Judged(() if todo == "1" else ("no results",)) for todo in asked}, False
        one = Judged(("it stopped",)) if asked == ["2"] else Judged((), (f"about {asked[0]}",))
        return {asked[0]: one}, asked != ["2"]

    monkeypatch.setattr(todos, "run_and_judge", run)
    found = todos.check_todos({}, NUMBERS, [])
    assert found.wrong == ["2"] and found.stuck == ("2",)
    assert found.notes == {"1": (), "2": (), "3": ("about 3",), "4-1": ("about 4-1",), "4-2": ("about 4-2",)}
    assert [asked for asked, _ in runs] == [TODOS, ("2",), ("3",), ("4-1",), ("4-2",)]


# ---------------------------------------------------------------------------------------------------------------------
# LoRAs


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def scene(color: tuple[int, int, int] = (200, 30, 30), radius: int = 40) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    inside = (x - 60) ** 2 + (y - 70) ** 2 < radius**2
    return np.where(inside[..., None], np.array(color), np.array([230, 240, 220])).astype(float)


def blobs(seed: int) -> np.ndarray:
    """Noise in latents, as a decoder makes it: blobs of 8 px."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    return np.asarray(small.resize((128, 128), Image.BICUBIC), float)


def hatched() -> np.ndarray:
    """A style of bold stripes, whose pixels change from latent to latent."""
    y, x = np.mgrid[:128, :128]
    return np.where(((x + y) % 20 < 10)[..., None], np.array([40, 40, 90]), np.array([250, 240, 210])).astype(float)


def test_pictures_are_measured():
    noise = np.random.default_rng(0).uniform(0, 255, (128, 128, 3))
    assert contrast(scene()) > 20 and contrast(np.full((128, 128, 3), 77.0)) == 0
    assert (
        smoothness(scene()) > 0.6
        and smoothness(noise) < 0.05
        and smoothness(hatched()) < 0 < smoothness(blobs(0)) < NUMBERS.least_smoothness
    )
    assert calm(scene()) > 0.8 and calm(noise) < 0.05 and calm(blobs(0)) < 0.05
    assert change(scene(), scene()) == 0 and change(scene(), scene((30, 30, 200))) > 10
    assert (read_picture(png(scene())) == scene()).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda i: scene((30, 30, 200)), None),
        (lambda i: scene() + np.random.default_rng(i).normal(0, 25, (128, 128, 3)), None),
        (lambda i: hatched(), None),
        (lambda i: scene() + 0.5, "does not visibly change"),
        (lambda i: np.full((128, 128, 3), 90.0), "one flat colour"),
        (lambda i: blobs(i), "are noise"),
        (lambda i: np.random.default_rng(i).uniform(0, 255, (128, 128, 3)), "are noise"),
    ],
    ids=["another colour", "grain", "hatching", "the same", "flat", "latent noise", "noise"],
)
def test_a_lora_is_judged_by_its_pictures(make, words):
    plain = [png(scene())] * 4
    problem, facts = judge_pictures([png(make(i)) for i in range(4)], plain, NUMBERS)
    assert (problem is None) == (words is None) and (words or "") in (problem or "")
    assert "differ from those without it by" in facts


def mask(name: str, tensor: np.ndarray) -> np.ndarray:
    ones = np.zeros_like(tensor)
    if "lora_A" in name:
        ones[1] = 1
    else:
        ones[:, 0] = 1
    return ones


@pytest.mark.parametrize("sd_1", [False, True])
def test_one_lora_is_no_two_however_it_is_written(tmp_path, sd_1):
    own, other = lora_tensors(1, sd_1=sd_1), lora_tensors(2, sd_1=sd_1)
    forms = {
        "half precision": ({name: tensor.astype(np.float16) for name, tensor in own.items()}, False),
        "other factors": ({name: tensor * (2 if "lora_A" in name else 0.25) for name, tensor in own.items()}, False),
        "another": (other, True),
        # The first column of B with the second row of A alone: neither is zero, what they make is.
        "nothing at all": ({name: tensor * mask(name, tensor) for name, tensor in own.items()}, True),
    }
    for form, (tensors, is_another) in forms.items():
        files = {name: tmp_path / f"{name}.safetensors" for name in ("lora_1", "lora_2")}
        for path, content in zip(files.values(), (own, tensors)):
            path.write_bytes(save(content))
        judged, _ = judge_files(files)
        assert judged["lora_1"].problem is None and (judged["lora_2"].problem is None) == is_another, form


def test_loras_of_stable_diffusion_are_judged_by_their_norms(tmp_path):
    for b, words in ((0.01, None), (1e-7, "adds nearly nothing"), (1e3, "so much")):
        path = tmp_path / "lora.safetensors"
        path.write_bytes(save(lora_tensors(1, b, sd_1=True)))
        judged, good = judge_files({"lora_1": path})
        assert judged["lora_1"].problem is None and good["lora_1"].base == "Stable Diffusion 1.x"
        problem = judge_norm(good["lora_1"], NUMBERS)
        assert (problem is None) == (words is None) and (words or "") in (problem or "")


def test_loras_of_stable_diffusion_are_drawn_and_scored_where_the_models_are(warm_programs, tmp_path, monkeypatch):
    """The embedded base stands for Stable Diffusion, small models of the same layout for CLIP and DINO."""
    monkeypatch.setattr("grading.autograder.loras.BASE", "another base")
    monkeypatch.setattr("grading.autograder.loras.SD_1", "tiny_sd")
    file = tmp_path / "lora.safetensors"
    file.write_bytes(save(lora_tensors(1)))
    shared = SimpleNamespace(base=tmp_path / "nowhere")
    judged, plain = judge_loras({"lora_1": file}, shared, NUMBERS, 300, tmp_path / "work")
    assert not plain and "no pictures were drawn" in judged["lora_1"].facts

    clip, dino = save_small_clip(tmp_path / "clip"), save_small_dino(tmp_path / "dino")
    numbers = replace(NUMBERS, sd_base=str(ROOT / "tiny_sd"), clip_model=clip, dino_model=dino)
    judged, plain = judge_loras({"lora_1": file}, shared, numbers, 300, tmp_path / "work")
    assert len(plain) == len(judged["lora_1"].pictures) == len(NUMBERS.lora_prompts)
    scores = re.findall(r"by (-?[0-9.]+) \((CLIP-T|DINO)\), without it by (-?[0-9.]+)\.", judged["lora_1"].facts)
    assert [name for _, name, _ in scores] == ["CLIP-T", "DINO"]
    assert all(-1 <= float(value) <= 1 for own, _, without in scores for value in (own, without))


def test_a_controlnet_that_draws_what_is_not_finite_has_diverged(warm_programs, tmp_path):
    """Guidance beyond all measure stands for weights that are finite and whose sums are not."""
    unet = UNet2DConditionModel.from_pretrained(small_base(), subfolder="unet")
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / MODEL)
    (tmp_path / "work").mkdir()
    shared, numbers = Shared(tmp_path, Path(small_base())), replace(NUMBERS, guidance_scale=1e38, held_out=1)
    found = evaluate(tmp_path / MODEL / WEIGHTS, shared, numbers, 300, tmp_path / "work")
    assert "not finite: the training diverged" in found.problem and not found.ious
    assert graded(replace(EVIDENCE, alignment=found))[0] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Results, whatever happens


CHILDREN = {
    "crashes": ("import os; os._exit(3)", "the grader stopped"),
    "raises": ("raise SystemExit('lost')", "the grader stopped"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "the grader stopped"),
    "hangs": ("import time; time.sleep(60)", "it took longer than 0 minutes, as this machine is too slow, or too busy"),
    "forks and hangs": ("import os, time; os.fork(); time.sleep(60)", "it took longer than 0 minutes"),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_there_are_results_when_grading_fails(tmp_path, name, capsys):
    script, words = CHILDREN[name]
    check = (
        "import json, sys; job = json.loads(sys.argv[-1]); "
        f"assert 'not finished' in open({str(tmp_path / 'results.json')!r}).read(); "
    )
    start = time.monotonic()
    grade_into(
        tmp_path / "x.zip", tmp_path / "results.json", tmp_path, [], [], [],
        seconds=1 - LAST_SECONDS, command=["-c", check + script],
    )  # fmt: skip
    assert time.monotonic() - start < 15
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == 0 and sum(test["max_score"] for test in results["tests"]) == 20
    assert all(words in test["output"] and "ask the teacher" in test["output"] for test in results["tests"])
    assert "AssertionError" not in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_report_that_this_machine_is_too_busy_to_read_is_not_missing(tmp_path, monkeypatch):
    def too_busy(*_):
        raise TimeoutError("This machine is too busy: reading 'r.pdf' did not get 20 seconds.")

    monkeypatch.setattr("grading.autograder.grade.inspect_report", too_busy)
    path = write_zip(hand_in(), tmp_path / "1.zip")
    autograder.run_job(autograder.Job(str(path), str(tmp_path), [], [], [], 60.0, str(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert not is_graded(results) and "too busy: reading 'r.pdf'" in results["tests"][0]["output"]
    assert json.loads((tmp_path / "gallery.json").read_text()) == []


def test_a_full_disk_is_no_fault_of_the_hand_in(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setattr("grading.files.archive.write", full)
    path = write_zip(hand_in(), tmp_path / "1.zip")
    autograder.run_job(autograder.Job(str(path), str(tmp_path), [], [], [], 60.0, str(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert not is_graded(results) and "this machine cannot do it (No space left on" in results["tests"][0]["output"]


@pytest.mark.parametrize("call", ["replace", "fdopen"])
def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomically(tmp_path / "grades.csv", "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "grades.csv", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_base_that_cannot_be_drawn_with_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise GraderError("draw_loras.py failed: no disk")

    monkeypatch.setattr("grading.autograder.loras.run_trusted", fail)
    with pytest.raises(GraderError):
        keep_plain(tmp_path, NUMBERS, 10)
    assert not list(tmp_path.iterdir())


def test_a_hand_in_that_the_machine_cannot_read_does_not_stop_the_others(tmp_path, monkeypatch, graders):
    class Forbidden(type(Path())):
        def open(self, *_, **__):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    names = {name: write_zip({"a": name.encode()}, tmp_path / f"{name}.zip") for name in ("Kim", "Lee")}
    monkeypatch.setattr(autograder, "hand_ins", lambda path: {**names, "Lee": Forbidden(names["Lee"])})
    graders(results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, []))
    grade_all(tmp_path, tmp_path / "out", tmp_path / "prepared", [], jobs=1)
    rows = read_table(tmp_path / "out" / "grades.csv")[1:]
    assert [row[:2] for row in rows] == [["Kim", "20"], ["Lee", ""]]
    assert "this machine cannot read it (Permission denied)" in rows[1][COLUMNS.index("what is wrong")]
    assert "Lee: It is not compared: this machine cannot read it" in (tmp_path / "out" / "index.html").read_text()


def test_gradescope_gets_its_results(tmp_path, graders):
    (tmp_path / "submission").mkdir()
    results = results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 12.3, ["the network can be reached"])
    graders(results)
    assert grade_on_gradescope(tmp_path, tmp_path / "prepared", []) == results
    written = json.loads((tmp_path / "results" / "results.json").read_text())
    assert written == results and written["score"] == 20 and written["execution_time"] == 12
    for test in written["tests"]:
        assert test.keys() >= {"name", "score", "max_score", "status", "output"} and test["output_format"] == "md"
        assert test["status"] in ("passed", "failed") and test["visibility"] == "visible"
    assert sum(test["score"] for test in written["tests"]) == written["score"]
    assert (tmp_path / "results" / "results.json").stat().st_mode & 0o077 == 0


def test_gradescope_gets_results_when_the_grader_cannot_even_start(tmp_path, monkeypatch):
    def fail(prepared, numbers, seconds, train):
        raise GraderError("train.py failed: no disk")

    monkeypatch.setattr(autograder, "ready", fail)
    grade_on_gradescope(tmp_path, tmp_path / "prepared", [])
    written = json.loads((tmp_path / "results" / "results.json").read_text())
    assert written["score"] == 0 and "the grader does not work" in written["tests"][0]["output"]


def test_threads_are_as_many_as_there_is_time_for(tmp_path, monkeypatch):
    visible = len(os.sched_getaffinity(0))
    for text, expected in (
        ("max 100000", visible),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("9900000 100000", visible),
    ):
        (tmp_path / "cpu.max").write_text(text)
        assert usable_cores(tmp_path / "cpu.max") == expected
    assert usable_cores(tmp_path / "missing") == visible
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_trusted(["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], tmp_path, 10) == "7\n"


def test_a_trusted_program_has_limits(tmp_path):
    assert run_trusted(["-c", "print('hello')"], tmp_path, 10) == "hello\n"
    with pytest.raises(GraderError, match="lost"):
        run_trusted(["-c", "raise SystemExit('lost')"], tmp_path, 10)
    start = time.monotonic()
    with pytest.raises(GraderError, match="longer than 1 s"):
        run_trusted(["-c", "import os, time; os.fork(); time.sleep(60)"], tmp_path, 1)
    assert time.monotonic() - start < 10


# ---------------------------------------------------------------------------------------------------------------------
# The teacher's files


def test_a_module_that_fails_is_called_by_its_name(tmp_path):
    with pytest.raises(GraderError, match="^json.nothing failed: "):
        run_trusted(["-m", "json.nothing"], tmp_path, 20)


@pytest.mark.parametrize("more", [["--quick"], ["--output", "out"]])
def test_what_gradescope_would_ignore_is_refused(tmp_path, monkeypatch, capsys, more):
    monkeypatch.setattr("sys.argv", ["autograder", "--gradescope", str(tmp_path), *more])
    with pytest.raises(SystemExit) as stopped:
        autograder.main()
    assert stopped.value.code == 2 and "it takes no hand-in, --output or --quick" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def read_table(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open(newline="", encoding="utf-8-sig")))


def test_no_two_hand_ins_share_a_folder():
    names = ["Kim Lee", "Kim_Lee", "..", "Kim/Lee", "김"]
    assert list(folder_names(names).values()) == ["Kim_Lee", "Kim_Lee_", "_", "Kim_Lee__", "김"]


def test_a_hand_in_with_a_long_name_has_a_folder(tmp_path):
    """As platforms name folders, in a script of three bytes a letter."""
    names = [f"{'홍길동 제출물 ' * 10}/{'과제 ' * 20}/{i}" for i in range(2)]
    folders = folder_names(names)
    assert len(set(folders.values())) == 2
    for folder in folders.values():
        (tmp_path / folder).mkdir()


def test_a_folder_of_zips_becomes_a_table_and_a_page(tmp_path, graders):
    (tmp_path / "in").mkdir()
    for name in ("20240001_Kim", "=cmd()", "20240002_Lee"):
        write_zip({"a": b""}, tmp_path / "in" / f"{name}.zip")
    results = results_of(grade(replace(EVIDENCE, todos=WRONG), NUMBERS), NUMBERS, 1, [])
    graders(results)
    grade_all(tmp_path / "in", tmp_path / "out", tmp_path / "prepared", [], jobs=2)
    for folder in ("20240001_Kim", "20240002_Lee"):
        assert json.loads((tmp_path / "out" / folder / "results.json").read_text()) == results
    rows = read_table(tmp_path / "out" / "grades.csv")
    assert rows[0] == list(COLUMNS)
    assert [row[:4] for row in rows[2:]] == [["20240002_Lee", "15", "5", "10"], ["'=cmd()", "15", "5", "10"]]
    assert "TODO (3): the residuals are not kept" in rows[1][COLUMNS.index("what is wrong")]
    assert "20240001_Kim" in (tmp_path / "out" / "index.html").read_text()


def test_a_second_start_grades_what_the_first_one_did_not(tmp_path, monkeypatch, capsys):
    graded = []

    def grade_one(hand_in, target, *_, quick, **__):
        graded.append((hand_in.name, quick))
        failed = hand_in.read_bytes() == b"fails"
        results = results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, [])
        autograder.write_results(target, not_graded("the grader stopped.", NUMBERS) if failed else results)
        return json.loads(target.read_text()), [{"title": "T", "text": "t", "pictures": []}]

    def start(*settings: str, quick: bool = False) -> list[str]:
        graded.clear()
        results = grade_all(tmp_path / "in", tmp_path / "out", tmp_path / "prepared", settings, 1, quick)
        assert list(results) == ["a", "b", "c"]
        assert [row[0] for row in read_table(tmp_path / "out" / "grades.csv")[1:]] == ["a", "b", "c"]
        return [name for name, _ in graded]

    monkeypatch.setattr(autograder, "ready", ready_at_once)
    monkeypatch.setattr(autograder, "grade_into", grade_one)
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_zip({"x": name.encode()}, tmp_path / "in" / f"{name}.zip")
    (tmp_path / "in" / "b.zip").write_bytes(b"fails")
    assert (
        start() == ["a.zip", "b.zip", "c.zip"] and "a: 20 points (1 of 3, about 0 min left)" in capsys.readouterr().out
    )
    assert start() == ["b.zip"], "only what was not graded"
    write_zip({"x": b"other"}, tmp_path / "in" / "c.zip")
    assert start() == ["b.zip", "c.zip"] and start() == ["b.zip"]
    (tmp_path / "out" / "a" / "results.json").write_text('{"sco')
    assert start() == ["a.zip", "b.zip"]
    assert start("least_iou=0.6") == ["a.zip", "b.zip", "c.zip"], "by another rubric all are graded anew"
    assert start("least_iou=0.6", quick=True) == ["a.zip", "b.zip", "c.zip"] and graded[0] == ("a.zip", True)


def test_one_hand_in_does_not_replace_the_table_of_a_course(tmp_path, monkeypatch):
    good = results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, [])
    monkeypatch.setattr(autograder, "ready", ready_at_once)
    monkeypatch.setattr(autograder, "grade_into", lambda *_, **__: (good, []))
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_zip({"x": name.encode()}, tmp_path / "in" / f"{name}.zip")

    def start(hand_in: str, output: str) -> list[str]:
        grade_all(tmp_path / hand_in, tmp_path / output, tmp_path / "prepared", [], jobs=1)
        return [row[0] for row in read_table(tmp_path / output / "grades.csv")[1:]]

    assert start("in/a.zip", "out") == ["a"] and start("in/b.zip", "out") == ["b"]
    assert start("in", "out") == ["a", "b", "c"]
    with pytest.raises(GraderError, match="has a table with a, c, too, which these hand-ins would replace"):
        start("in/b.zip", "out")
    assert [row[0] for row in read_table(tmp_path / "out" / "grades.csv")[1:]] == ["a", "b", "c"]
    assert start("in/b.zip", "elsewhere") == ["b"]
    (tmp_path / "late").mkdir()
    for name in "ab":
        write_zip({"x": b"once more"}, tmp_path / "late" / f"{name}.zip")
    with pytest.raises(GraderError, match="has a table with c, too.* Put all in one folder"):
        start("late", "out")
    (tmp_path / "in" / "c.zip").unlink()
    assert start("in", "out") == ["a", "b"], "taken back"
    (tmp_path / "out" / "grades.csv").write_bytes("hand-in,total\r\n김,1".encode("cp949"))
    with pytest.raises(GraderError, match="grades.csv is not as the grader wrote it .*move it away"):
        start("in", "out")


def test_a_hand_in_may_say_what_no_encoding_has(tmp_path):
    """Half a character, as an exception's words or a PDF may have: the others' grades are written all the same."""
    write_atomically(tmp_path / "page.html", "a\ud800b")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a\\ud800b"


def test_ctrl_c_ends_what_runs_and_starts_no_more():
    started, process = [], []

    def grade_one(name: str):
        started.append(name)
        if name == "b":
            return results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, []), []
        job = autograder.Job("x", "x", [], [], [], 30.0, "x")
        process.append(supervise(job, NUMBERS, ["-c", "import time; time.sleep(60)"])[0])
        return process[0], []

    def interrupt(signal_number, frame):
        raise KeyboardInterrupt

    start, before = time.monotonic(), signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(autograder.in_parallel(grade_one, ["a", "b", "c"], 1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert started == ["a"] and not is_graded(process[0]) and time.monotonic() - start < 20


def test_a_quick_look_gives_no_points_and_says_what_is_wrong(tmp_path):
    untrained = Alignment(NOT_TRAINED)
    for places, task_1, words in ((RIGHT, "passed", "nothing is wrong so far"), (WRONG, "failed", "are not kept")):
        scores = look_quickly(replace(EVIDENCE, todos=places, alignment=untrained), NUMBERS)
        result = quick_look(scores, NUMBERS, 1, [])
        assert result["score"] == 0 and not is_graded(result) and words in in_short(result)
        assert [test["status"] for test in result["tests"] if test["name"].startswith("Task 1: Con")] == [task_1]
        write_table(tmp_path / "grades.csv", {"Kim": result})
        assert read_table(tmp_path / "grades.csv")[1][1:4] == ["", "", ""]
    shown = page({"Kim": result}, {"Kim": []}, NUMBERS)
    assert "there are no points, and none to give by hand" in shown and "are not kept" in shown
    assert "data-input" not in shown and "<script" not in shown and "points_by_hand.json" not in shown
    unreadable = quick_look(look_quickly(replace(EVIDENCE, unreadable="No zip."), NUMBERS), NUMBERS, 1, [])
    assert "No zip." in in_short(unreadable)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.sources, self.words = [], [], []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data) -> None:
        self.words.append(data)


def test_the_table_on_top_says_briefly_what_is_wrong_with_each():
    unreadable, no_lora = replace(EVIDENCE, unreadable="It is no zip."), {"lora_2": "The LoRA of Task 2-2 is missing."}
    evidences = {
        "a": EVIDENCE,
        "b": replace(EVIDENCE, todos=WRONG),
        "c": unreadable,
        "d": replace(EVIDENCE, missing=no_lora),
    }
    results = {name: results_of(grade(evidence, NUMBERS), NUMBERS, 1, []) for name, evidence in evidences.items()}
    shown = page(results, dict.fromkeys(results, ()), NUMBERS).split("</table>")[0].split("<tr>")[2:]
    rows = [[html.unescape(cell) for cell in re.findall('<td class="reason">([^<]*)</td>', row)] for row in shown]
    assert rows[0] == ["The generated images align with the conditions.", "Both LoRAs are good."]
    assert "TODO (3) is wrong" in rows[1][0] and rows[1][0].endswith("TODO (3): the residuals are not kept.")
    assert rows[2] == ["The hand-in cannot be read. It is no zip."] * 2
    assert all("The LoRA of Task 2-2 is missing." in reason for reason in rows[3])


def test_the_page_holds_everything_and_runs_nothing_but_its_own_script():
    evil = f"<script>alert(1)</script>{block('<img src=x onerror=alert(2)>')}- **bold** `code` & more"
    evidence = replace(EVIDENCE, unreadable=evil)
    results = {"<b>Kim</b>": results_of(grade(evidence, NUMBERS), NUMBERS, 1, [])}
    rows = [
        {"title": "Task 1", "text": "<i>prompt</i>", "pictures": [{"caption": 'IoU "0.9"', "png": "aGVsbG8="}]},
        {"title": "Task 2", "text": "a cat", "pictures": [{"caption": "without", "png": '"><script>'}]},
    ]
    reader = Reader()
    reader.feed(page(results, {"<b>Kim</b>": rows}, NUMBERS))
    assert reader.tags.count("script") == 2 and "i" not in reader.tags and reader.tags.count("img") == 2
    assert reader.tags.index("script") > reader.tags.index("pre")
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in reader.sources)
    text = "".join(reader.words)
    for words in ("<script>alert(1)</script>", "<i>prompt</i>", "the last word is yours", "train_steps = 700"):
        assert words in text
    assert "ran as another user" in text
    gaps = {"Kim": results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, ["the network can be reached"])}
    assert "the network can be reached" in page(gaps, {"Kim": []}, NUMBERS)


def test_reasons_are_shown_as_they_are_meant():
    shown = render("One **thing**:\n- a\n- b" + block("<tail>\n``` of it") + "\nend")
    assert "<p>One <b>thing</b>:</p>" in shown and "<ul><li>a</li>\n<li>b</li>\n</ul>" in shown
    assert "<pre>&lt;tail&gt;\n``` of it</pre>" in shown and shown.endswith("<p>end</p>")


def test_the_table_names_what_is_wrong(tmp_path):
    results = {"Kim": results_of(grade(replace(EVIDENCE, alignment=LOST), NUMBERS), NUMBERS, 1, [])}
    write_table(tmp_path / "grades.csv", results)
    header, row = read_table(tmp_path / "grades.csv")
    assert row[1] == "15" and "do not align with the conditions" in row[header.index("what is wrong")]


def test_the_table_opens_right_in_a_spreadsheet(tmp_path):
    names = ["홍길동", "=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "＝1+1", " =1", "\ufeff", 'Kim, "Lee"']
    results = {name: results_of(grade(EVIDENCE, NUMBERS), NUMBERS, 1, []) for name in names}
    write_table(tmp_path / "grades.csv", results)
    assert (tmp_path / "grades.csv").read_bytes().startswith(b"\xef\xbb\xbfhand-in,total,")
    shown = [row[0] for row in read_table(tmp_path / "grades.csv")[1:]]
    assert shown == [name if name in ("홍길동", "\ufeff", 'Kim, "Lee"') else f"'{name}" for name in names]


# ---------------------------------------------------------------------------------------------------------------------
# Gradescope's zip


@pytest.fixture(scope="module")
def autograder_zip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("build") / "autograder.zip"
    write_autograder(path)
    return path


def test_the_zip_has_what_gradescope_needs_and_no_more(autograder_zip):
    with zipfile.ZipFile(autograder_zip) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
        assert b"set -euo pipefail" in archive.read(SETUP)
    assert modes["run_autograder"] == modes["setup.sh"] == 0o100755
    for name in (
        "grading/autograder/run.py",
        "grading/grades/rules.toml",
        "grading/handed_out/handed_out.json.gz",
        "finetune/model/base.py",
        "requirements.txt",
    ):
        assert modes[name] == 0o100644
    for name in ("task_1_controlnet/train.py", "task_1_controlnet/data/test_prompts.json", "task_2_lora/drawing.py"):
        assert name in modes
    assert "tiny_sd/unet/diffusion_pytorch_model.safetensors" in modes and "tiny_sd/tokenizer/vocab.json" in modes
    assert not [name for name in modes if name.startswith(("tests/", ".git", "build/", "runs/", "tiny_sd/pictures"))]
    assert not [name for name in modes if "__pycache__" in name or "sample_data" in name]


def test_a_grader_that_did_not_start_uses_up_no_attempt():
    """What run_autograder writes then."""
    script = (ROOT / "grading" / "gradescope" / "run_autograder").read_text()
    written = json.loads(re.search(r"printf '(\{.*\})\\n'", script).group(1))
    assert written["score"] == 0
    assert not counts(Attempt(datetime(2026, 12, 2, tzinfo=timezone.utc), written))


def test_the_zip_is_the_same_every_time(autograder_zip, tmp_path):
    write_autograder(tmp_path / "again.zip")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (autograder_zip, tmp_path / "again.zip")}
    assert len(digests) == 1


def test_the_index_of_pytorch_can_be_set(tmp_path, monkeypatch):
    monkeypatch.setattr("grading.gradescope.pack.FOLDERS", ("finetune",))  # which has no weights to pack
    write_autograder(tmp_path / "a.zip", "https://example.org/cpu")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert b"TORCH_INDEX='https://example.org/cpu'\n" in archive.read(SETUP)
    for bad in ("cpu", "https://example.org/'; rm -rf /"):
        with pytest.raises(ValueError, match="no address"):
            write_autograder(tmp_path / "b.zip", bad)


def test_the_scripts_are_valid_and_the_unpacked_grader_starts(autograder_zip, tmp_path):
    with zipfile.ZipFile(autograder_zip) as archive:
        archive.extractall(tmp_path)
    for name in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", tmp_path / name]).returncode == 0
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for program, flag in (("autograder", "--gradescope"), ("contest", "--iou")):
        command = [sys.executable, "-m", f"grading.{program}", "--help"]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0 and flag in run.stdout, run.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The real thing


def test_a_program_of_the_warm_python_computes_with_the_threads_that_it_is_told(warm_programs):
    for threads in ("1", "2", "1"):
        with Sandbox() as sandbox:
            own = {"OMP_NUM_THREADS": threads}
            outcome = sandbox.run_python(
                ["-c", "import torch; print(torch.get_num_threads())"], NUMBERS.limits(60), own
            )
        assert outcome.tail.split() == [threads]


def test_a_real_hand_in_is_graded(warm_programs, tmp_path):
    """With the real programs, for two steps on a few samples: no alignment can come of that, and it says so."""
    write_zip(hand_in(**{LORA_2: save(lora_tensors(2, b=1e-6))}), tmp_path / "20241234_Kim.zip")
    command = [sys.executable, "-m", "grading.autograder", tmp_path / "20241234_Kim.zip", "--output", tmp_path / "out"]
    command += ["--prepared", tmp_path / "prepared"]
    for setting in (
        "train_steps=2",
        "prove_steps=5",
        "train_flags=('--max_train_samples', '8', '--train_batch_size', '4')",
        "held_out=1",
        f"lora_prompts=('{PROMPT}',)",
    ):
        command += ["--set", setting]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "out" / "20241234_Kim" / "results.json").read_text())
    tests = {test["name"]: test for test in results["tests"]}
    assert tests["Task 1: ControlNet"]["score"] == 5, tests
    assert "Trained for 2 steps" in tests["Task 1: ControlNet"]["output"]
    assert "after 5 steps its ControlNet equals the right solution's" in tests["Task 1: ControlNet"]["output"]
    assert all(tests[f"Task 1: TODO ({todo})"]["status"] == "passed" for todo in TODOS)
    assert tests["Task 2: LoRA and DreamBooth"]["score"] == 5
    assert "does not visibly change the pictures" in tests["Task 2: lora_2"]["output"]
    assert results["score"] == 10 and "20241234_Kim: 10 points" in run.stdout
    reader = Reader()
    reader.feed((tmp_path / "out" / "index.html").read_text())
    assert reader.tags.count("img") == 5 * 2 + 3
    # What was prepared serves the next grading, also one with other numbers.
    again = [
        *command[:3],
        "--prepare",
        "--prepared",
        tmp_path / "prepared",
        "--set",
        "train_flags=('--max_train_samples', '8', '--train_batch_size', '2')",
        "--set",
        "prove=False",
        "--set",
        "lora_prompts=('a red car',)",
    ]
    run = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stdout + run.stderr
