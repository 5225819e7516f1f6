"""`python -m kit` does what make does, on every system, before anything is installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import PurePath
from types import SimpleNamespace

import pytest

from kit import __main__ as program
from kit import commands, environment, running
from kit.environment import COURSE, TODAY
from processes import ROOT

INDEX = "https://index.example/cpu"


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that are started, in place of starting them."""
    seen = []

    def record(command, folder=ROOT, environment=None):
        seen.append([str(part) for part in command])

    monkeypatch.setattr(commands, "run", record)
    monkeypatch.setattr(environment, "run", record)
    return seen


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An environment that is not there yet, with an interpreter of the right version."""
    (tmp_path / "requirements.txt").write_text("-e .\ntorch>=2.5\ntorchvision>=0.20  # beside it\ntorch-other\ntqdm\n")
    fresh = replace(TODAY, folder=tmp_path / ".venv", requirements=tmp_path / "requirements.txt")
    fresh.folder.mkdir()  # as venv does, which is only recorded
    monkeypatch.setattr(environment, "works", lambda *command: "--version" not in command)
    return fresh


def test_make_and_kit_have_the_same_commands():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    (commands_action,) = [action for action in program.parser()._actions if action.dest == "command"]
    assert set(commands_action.choices) == {*targets, "environment"}
    for target in targets:
        assert re.search(rf"^{target}:\n\t@\$\(PYTHON\) -m kit {target}\b", makefile, re.MULTILINE), target


def test_a_home_behind_an_equals_sign_is_the_home(monkeypatch):
    """Shells leave `~` as it is there."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    args = program.parser().parse_args(["demo", "--output=~/demo", "--base=~/base"])
    assert (args.output, args.base) == (PurePath("/home/somebody/demo"), PurePath("/home/somebody/base"))
    assert program.parser().parse_args(["page", "--base=~/base"]).base == os.path.join("/home/somebody", "base")


def test_it_starts_without_any_package():
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); "
         "sys.argv[1:] = ['--help']; runpy.run_module('kit', run_name='__main__')"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0 and "demo" in run.stdout and "--torch-index" in run.stdout, run.stderr


def test_demo_trains_and_scores_on_windows_too(started, monkeypatch):
    """The interpreter lies elsewhere there; nothing goes through a shell."""
    monkeypatch.setattr(environment, "os", SimpleNamespace(name="nt"))
    commands.demo(TODAY, PurePath("runs/own name"), PurePath("tiny_sd"))
    assert all(command[0].endswith("Scripts/python.exe") for command in started)
    trained, scored = started
    out = str(PurePath("../runs/own name"))
    assert trained[1] == "train.py" and trained[trained.index("--output_dir") + 1] == out
    assert scored[1] == "evaluate.py" and scored[scored.index("--controlnet") + 1] == str(PurePath(out, "controlnet"))


def test_the_page_gets_its_own_requirements_once_and_then_starts(started, fresh, monkeypatch):
    args = program.parser().parse_args(["page", "--port", "7861"])
    fresh.prepare("python3", None)
    del started[:]
    program.start(args, fresh)
    program.start(args, fresh)
    serve = [fresh.python, "-m", "page", "--base", "tiny_sd", "--host", "127.0.0.1", "--port", "7861"]
    install = [fresh.python, "-m", "pip", "install", "-r", str(ROOT / "requirements-page.txt")]
    assert started == [install, serve, serve]
    fresh.requirements.write_text(fresh.requirements.read_text() + "numpy\n")
    fresh.prepare("python3", None)  # the rest is installed anew, and may have changed what the page needs
    program.start(args, fresh)
    assert started[-2:] == [install, serve]


def test_ctrl_c_is_the_pages_end_and_anything_else_a_failure(fresh, monkeypatch):
    def stop(status):
        def run(command, *more):
            raise running.Stopped("Stopped.", status)

        return run

    monkeypatch.setattr(environment, "run", lambda *command: None)
    fresh.prepare("python3", None)
    monkeypatch.setattr(commands, "run", stop(128 + signal.SIGINT))
    commands.page(fresh, "tiny_sd", "127.0.0.1", "7860")
    monkeypatch.setattr(commands, "run", stop(1))
    with pytest.raises(running.Stopped):
        commands.page(fresh, "tiny_sd", "127.0.0.1", "7860")


def test_a_students_copy_runs_the_students_tests_and_has_no_teachers_command(started, monkeypatch):
    monkeypatch.setattr(commands, "is_starter", lambda: True)
    commands.test(TODAY)
    assert started == [[TODAY.python, "-m", "pytest", "-q", "grading/student_tests"]]
    with pytest.raises(SystemExit):
        program.parser().parse_args(["grade"])


@pytest.mark.parametrize("more, passed_on", [([], []), (["--jobs", "2"], ["--jobs=2"])])
def test_grading_passes_on_how_many_at_a_time_if_that_is_said(started, more, passed_on):
    program.start(program.parser().parse_args(["grade", *more, "some/folder"]), TODAY)
    grader = [TODAY.python, "-m", "grading.autograder", "--output", "build/grades"]
    assert started == [[*grader, *passed_on, "--", "some/folder"]]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("said, passed_on", [([], ""), (["JOBS=2"], "--jobs 2")])
def test_make_grade_passes_on_the_jobs_of_its_command_line(monkeypatch, said, passed_on):
    monkeypatch.setenv("JOBS", "7")
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS"):  # these tests may run under `make test`
        monkeypatch.delenv(name, raising=False)
    shown = subprocess.run(["make", "-n", "grade", "HAND_INS=a b", *said], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert shlex.split(shown.stdout.decode())[1:] == shlex.split(f"-m kit grade {passed_on} 'a b'")


def test_some_tests_can_be_asked_for(started):
    args = program.parser().parse_args(["test", "tests/controlnet/test_models.py"])
    program.start(args, TODAY)
    assert len(started) == 1 and started[0][:3] == [TODAY.python, "-m", "pytest"]
    assert started[0][-2:] == ["--", "tests/controlnet/test_models.py"]


def test_every_file_of_the_workflow_is_there():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    files = re.findall(r"tests/[\w/]+\.py", workflow)
    assert len(files) > 10 and all((ROOT / file).is_file() for file in files)


def test_without_an_index_nothing_but_the_requirements_is_installed(started, fresh):
    fresh.prepare("python3", None)
    assert started == [
        ["python3", "-m", "venv", str(fresh.folder)],
        [fresh.python, "-m", "pip", "install", "-r", str(fresh.requirements)],
    ]
    fresh.prepare("python3", None)
    assert len(started) == 2 and fresh.is_ready()


def test_torch_and_torchvision_come_together_from_the_index_before_the_rest(started, fresh):
    fresh.prepare("python3", INDEX)
    pip = [fresh.python, "-m", "pip", "install"]
    assert started[1:] == [
        [*pip, f"--index-url={INDEX}", "torch>=2.5", "torchvision>=0.20"],
        [*pip, "-r", str(fresh.requirements)],
    ]
    fresh.prepare("python3", INDEX)  # the same again: it is there
    assert len(started) == 3
    fresh.requirements.write_text(fresh.requirements.read_text() + "numpy\n")
    fresh.prepare("python3", None)  # the requirements changed: PyTorch still comes from where it came from
    assert f"--index-url={INDEX}" in started[4]


def test_a_copied_folder_is_installed_anew_and_newer_files_are_not(started, fresh, monkeypatch):
    fresh.prepare("python3", None)
    later = time.time() + 60
    os.utime(fresh.requirements, (later, later))  # as a checkout does
    assert fresh.is_ready()
    monkeypatch.setattr(environment, "ROOT", fresh.folder.parent)  # its `finetune` is that of the old folder
    shutil.copy(ROOT / "pyproject.toml", fresh.folder.parent)
    assert not fresh.is_ready()
    fresh.prepare("python3", None)
    assert fresh.is_ready() and started[-1][-2:] == ["-r", str(fresh.requirements)]


def test_an_environment_whose_python_is_gone_is_made_anew(started, fresh, monkeypatch):
    fresh.prepare("python3", None)
    monkeypatch.setattr(environment, "works", lambda *command: command[0] != fresh.python)
    assert not fresh.is_ready()
    fresh.prepare("python3", None)
    assert started[2] == ["python3", "-m", "venv", "--clear", str(fresh.folder)]


def test_an_environment_with_another_pytorch_is_not_taken_for_the_one_asked_for(started, fresh):
    fresh.prepare("python3", None)
    with pytest.raises(running.Stopped, match="is there, with PyTorch from the usual index: remove .venv first"):
        fresh.prepare("python3", INDEX)


@pytest.mark.parametrize("index", ["--help", "cpu", "https://index.example/a b", "ftp://index.example"])
def test_what_is_no_address_is_refused_before_anything_is_made(started, fresh, index):
    with pytest.raises(running.Stopped, match="give the address of an index"):
        fresh.prepare("python3", index)
    assert not started


def test_an_installation_that_failed_is_done_again(started, fresh, monkeypatch):
    def fail(command, *arguments):
        raise running.Stopped("no room")

    with monkeypatch.context() as full, pytest.raises(running.Stopped):
        full.setattr(environment, "run", fail)
        fresh.prepare("python3", None)
    assert not fresh.is_ready()
    fresh.prepare("python3", None)
    assert len(started) == 2


def test_a_python_of_another_version_is_refused_with_a_sentence(tmp_path):
    wrong = COURSE if sys.version_info[:2] != (3, 8) else TODAY
    missing = replace(wrong, folder=tmp_path / "environment")
    with pytest.raises(running.Stopped, match=f"needs {wrong.versions}, which .* is not"):
        missing.prepare(sys.executable, None)
    assert not missing.folder.exists()


def test_a_command_that_fails_or_is_not_there_is_a_sentence():
    with pytest.raises(running.Stopped, match="failed") as failed:
        running.run([sys.executable, "-c", "raise SystemExit(3)"])
    assert failed.value.status == 3
    with pytest.raises(running.Stopped, match="Cannot start nowhere/python"):
        running.run(["nowhere/python"])


TRAINING = """
import signal, sys, time

def save(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(0)

signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
STAGES = """
import sys
from kit.running import Stopped, run
try:
    run([sys.executable, sys.argv[1]])
    print("went on")
except Stopped as stopped:
    print(stopped, stopped.status)
"""


@pytest.mark.skipif(os.name == "nt", reason="no signals are sent there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_whoever_is_stopped_may_save_and_the_next_stage_does_not_start(number, tmp_path):
    """A training that Ctrl-C stops ends well: that must not pass for its end."""
    (tmp_path / "training.py").write_text(TRAINING)
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES, str(tmp_path / "training.py")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert "$" in process.stdout.readline() and process.stdout.readline() == "ready\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert said.startswith("saved\nStopped.") and str(128 + number) in said and "went on" not in said
