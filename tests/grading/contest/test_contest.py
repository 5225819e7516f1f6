"""The contest: a recipe is data, only the training counts, and a second start goes on where Ctrl-C stopped it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path, PurePath
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

import train
from grading.autograder.grade import Judges, look_at_recipe
from grading.contest import judge, run, stages
from grading.contest.judge import RECIPE, Entered, enter
from grading.contest.programs import train_timed
from grading.contest.recipe import ALLOWED, MAX_BYTES, REFUSED, Recipe, RecipeError, parse_recipe, read_recipe
from grading.contest.stages import Conditions, Reached, Stopped, run_recipe
from grading.grades.numbers import Numbers
from grading.grades.results import results_of
from grading.grades.rubric import Evidence, grade
from grading.sandbox.trusted import GraderError
from kit import commands

TINY = """
resolution = 64
max_train_samples = 16
train_batch_size = 4
gradient_accumulation_steps = 1
conditioning_channels = [8, 16, 32, 64]
max_train_steps = 99
learning_rate = 1e-3
"""
CONDITIONS = Conditions(target=2.0, held_out=1, gap=1000.0, threads=1)


def flags_of_train(monkeypatch) -> dict[str, object]:
    monkeypatch.setattr(train, "parse", lambda parser: parser)
    return {action.dest: action for action in train.parse_args()._actions}


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_a_recipe_sets_flags_of_the_training_and_no_place_or_name(monkeypatch):
    known = flags_of_train(monkeypatch)
    assert set(ALLOWED) <= set(known) and not set(ALLOWED) & set(REFUSED)
    assert not [name for name in ALLOWED if known[name].type in (Path, None, str) and not known[name].choices
                and known[name].nargs != 0]  # fmt: skip
    named = ("base", "name_or_path", "dir", "column", "dataset", "checkpoint", "workers")
    assert not [name for name in ALLOWED if any(part in name for part in named) and name != "gradient_checkpointing"]


def trainings_of_the_demo(monkeypatch) -> list[list[str]]:
    """What the demo gives train.py, once for each training."""
    started: list[list[str]] = []
    monkeypatch.setattr(commands, "run", lambda command, *_: started.append(command))
    commands.demo(SimpleNamespace(python="python"), PurePath("runs/demo"), PurePath("tiny_sd"))
    return [command[2:] for command in started if command[1] == "train.py"]


def test_the_reference_is_what_make_demo_trains(monkeypatch):
    """Both as train.py's own parser reads them, without what the contest sets for all."""

    def read(flags: list[str]) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        return {name: value for name, value in vars(train.parse_args()).items() if name in ALLOWED}

    reference = read_recipe(run.REFERENCE)
    in_demo = [read(flags) for flags in trainings_of_the_demo(monkeypatch)]
    assert len(in_demo) == 1 and all(one.keys() == set(ALLOWED) for one in in_demo)
    assert [read(reference.flags(stage)) for stage in range(len(reference.stages))] == in_demo


def test_what_stands_above_the_stages_holds_for_all():
    recipe = parse_recipe(
        "seed = 3\ngradient_checkpointing = true\n[[stage]]\nseed = 4\n[[stage]]\nno_cache = false", "a"
    )
    assert recipe.flags(0) == ["--seed=4", "--gradient_checkpointing"]
    assert recipe.flags(1) == ["--seed=3", "--gradient_checkpointing"]
    same = parse_recipe(
        "gradient_checkpointing = true # a word\nseed = 3\n[[stage]]\nseed = 4\n[[stage]]\nno_cache = false", "b"
    )
    assert same.identity == recipe.identity != parse_recipe("seed = 3", "a").identity


@pytest.mark.parametrize(
    "text, words",
    [
        ("output_dir = '/'", "the contest sets it"),
        ("pretrained_model_name_or_path = 'x'", "all train on the embedded base"),
        ("dataset_name = 'https://x'", "all train on the rendered discs"),
        ("dataloader_num_workers = 64", "the same number of threads"),
        ("import_os = 1", "which it may not: a recipe may set resolution"),
        ("seed = {a = 1}", "right is a number"),
        ("seed = ['a']", "right is a number"),
        ("conditioning_channels = []", "right is a number"),
        (f"lr_scheduler = '{'x' * 101}'", "right is a number"),
        ("stage = 1", r"write its stages as \[\[stage\]\]"),
        ("[[stage]]\n" * 9, "has 9 stages, of at most 8"),
        ("import os", "cannot be read as TOML"),
        ("a = " + "[" * 4000, "cannot be read as TOML"),
        ("#" * (MAX_BYTES + 1), "is larger than"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_reason(tmp_path, text, words):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=words) as refused:
        read_recipe(tmp_path / "mine.toml")
    assert "mine" in str(refused.value)


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="no UTF-8 text"):
        read_recipe(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rate = -1", "learning_rate: must be a finite number, more than 0"),
        ("learning_rate = 1e999", "learning_rate: must be a finite number"),
        ("lr_scheduler = '--output_dir=/tmp/x'", "lr_scheduler: invalid choice"),
        ("conditioning_channels = [-8, 16]", "conditioning_channels"),
        ("resolution = true", "resolution: expected one argument"),
    ],
)
def test_values_are_judged_by_the_parser_of_train_py(monkeypatch, capsys, text, words):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as ended:
        train_timed.parse_only([parse_recipe(text, "a").flags(0)])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_refusal_of_the_parser_becomes_a_sentence(monkeypatch):
    said = subprocess.CompletedProcess([], 2, "", "usage: train.py [-h]\ntrain.py: error: argument --seed: no\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(RecipeError, match="The recipe a cannot be trained with: argument --seed: no"):
        stages.check_flags(parse_recipe("seed = 3", "a"))


# ---------------------------------------------------------------------------------------------------------------------
# What counts


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_clock_counts_what_was_computed_and_not_while_it_is_paused():
    clock = train_timed.Clock(10.0)
    compute(0.2)
    assert clock.look() == 10
    clock.go()
    compute(0.3)
    with clock.paused():
        compute(0.5)
    compute(0.1)
    clock.stop()
    compute(0.2)
    assert 10.2 < clock.look() < 10.75


def drive(tmp_path, monkeypatch, recipe: str, target: float, seconds: float = 1000.0, gap: float = 0.0) -> dict:
    """Runs the program of a stage in this process, and returns its journal."""
    folder = tmp_path / "stage-1"
    folder.mkdir(exist_ok=True)
    with open(os.devnull, "w") as nowhere, monkeypatch.context() as patch:
        for name in ("load_test_data", "validate", "Training"):
            patch.setattr(train, name, getattr(train, name))
        patch.setattr(train_timed, "TICK_SECONDS", 0.05)  # what these tests wait for is computed
        settings = {
            "journal": str(folder / stages.JOURNAL), "pipe": nowhere.fileno(), "target": target, "conditions": 1,
            "gap": gap, "seconds": seconds,
        }  # fmt: skip
        flags = stages.stage_flags(parse_recipe(recipe, "tiny"), 0, tmp_path, CONDITIONS)
        patch.setattr(sys, "argv", ["train_timed.py", json.dumps(settings), *flags])
        train_timed.main()
    return stages.read_journal(folder)


def test_a_stage_ends_as_soon_as_a_check_reaches_the_target(tmp_path, monkeypatch):
    journal = drive(tmp_path, monkeypatch, TINY, target=0.0)
    (check,) = journal["checks"]
    assert journal["end"] == "reached" and check["step"] == 1 and 0 <= check["iou"] <= 1 and check["seconds"] > 0
    assert (tmp_path / "stage-1" / "checkpoint-1" / "controlnet").is_dir()


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["by hand", "by nohup"])
def test_a_stage_ends_when_its_time_is_used_up_also_before_its_first_step(handler, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, handler)
    journal = drive(tmp_path, monkeypatch, TINY.replace("16", "4000"), target=2.0, seconds=0.5, gap=1000.0)
    assert journal["end"] == "time" and journal["checks"] == []
    assert signal.signal(signal.SIGINT, before) is handler


def test_a_diverged_recipe_is_told_from_a_fault(tmp_path, monkeypatch):
    def diverge(self, *_):
        raise train_timed.NonFiniteLossError("The loss of step 1 is nan.")

    monkeypatch.setattr(train.Training, "optimization_step", diverge)
    assert drive(tmp_path, monkeypatch, TINY, target=2.0)["end"] == "diverged"


def test_more_memory_than_there_is_for_it_ends_a_training():
    command = [sys.executable, "-c", "import time; kept = b'x' * (300 << 20); time.sleep(300)"]
    process = subprocess.Popen(command, start_new_session=True)
    assert stages.wait(process, 150) == "memory" and process.returncode == -signal.SIGKILL


def test_ctrl_c_saves_and_a_second_start_goes_on_with_what_was_counted(tmp_path, monkeypatch, capsys):
    tell = train_timed.Stage.tell

    def interrupt(stage) -> None:
        tell(stage)
        if stage.step:
            stage.ask_to_stop()

    monkeypatch.setattr(train_timed.Stage, "tell", interrupt)
    journal = drive(tmp_path, monkeypatch, TINY, target=2.0, gap=1000.0)
    ((step, before),) = journal["seconds"].items()
    assert journal["end"] is None and 0 < int(step) < 99 and before > 0
    assert stages.where(tmp_path / "stage-1") == f"stage-1 goes on after step {step}"

    monkeypatch.setattr(train_timed.Stage, "tell", tell)
    AcceleratorState._reset_state(reset_partial_state=True)
    journal = drive(tmp_path, monkeypatch, TINY, target=2.0, gap=1000.0, seconds=before + 0.2)
    assert f"step {step} of 99" in capsys.readouterr().out
    assert journal["end"] == "time" and journal["seconds"][step] == before
    assert before < max(journal["seconds"].values()) < before + 30


def interrupt_while(process: subprocess.Popen) -> None:
    """Ctrl-C, unless the process that is waited for has ended."""
    if process.poll() is None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def ctrl_c_heard():
    """Tests that were started in the background, as by nohup, have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_lets_a_training_save_and_a_second_one_does_not(monkeypatch, ctrl_c_heard):
    program = "import signal, sys, time; signal.signal(2, lambda *_: {}); print(flush=True); time.sleep({}); {}"
    for action, status in (("sys.exit(0)", 0), ("0", -signal.SIGKILL)):
        command = [sys.executable, "-c", program.format(action, 300, "time.sleep(300)")]
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        process.stdout.readline()
        for delay in (0.5, 1.5):
            threading.Timer(delay, interrupt_while, [process]).start()
        assert stages.wait(process, 4096) == "asked" and process.returncode == status


def test_a_recipe_goes_stage_by_stage_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    trained = []

    def run_stage(recipe, stage, folder, conditions, seconds) -> None:
        trained.append((stage, seconds))
        end = "reached" if stage else "steps"
        checks = [{"step": 40, "seconds": 30.0, "iou": 0.5 + 0.4 * stage}]
        place = stages.stage_folder(folder, stage)
        place.mkdir(exist_ok=True)
        (place / stages.JOURNAL).write_text(json.dumps({"seconds": {"40": 31.0}, "checks": checks, "end": end}))

    monkeypatch.setattr(stages, "run_stage", run_stage)
    recipe = parse_recipe("[[stage]]\nseed = 1\n[[stage]]\nseed = 2\n[[stage]]\nseed = 3", "three")
    for _ in range(2):
        assert run_recipe(recipe, tmp_path, Conditions(seconds=100)) == Reached("reached", 61.0, 2, 40, 0.9, 2)
    assert trained == [(0, 100), (1, 69)]


# ---------------------------------------------------------------------------------------------------------------------
# Beside the reference


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The names of the recipes that were trained, which takes the seconds that their seeds say."""
    names: list[str] = []

    def train_nothing(recipe: Recipe, folder: Path, conditions: Conditions) -> Reached:
        names.append(recipe.name)
        seed = recipe.stages[0].get("seed")
        if seed is None:
            return Reached("reached", 100.0, 1, 650, 0.91, 20)
        return Reached("reached" if seed else "steps", float(seed), 1, 40, 0.9 if seed else 0.5, 2)

    monkeypatch.setattr(run, "run_recipe", train_nothing)
    monkeypatch.setattr(run, "check_flags", lambda recipe: None)
    return names


def held(tmp_path, monkeypatch, *arguments: str, **recipes: str) -> None:
    for name, text in recipes.items():
        (tmp_path / f"{name}.toml").write_text(text)
    files = [str(tmp_path / f"{name}.toml") for name in recipes]
    monkeypatch.setattr(sys, "argv", ["contest", *files, "--output", str(tmp_path / "out"), *arguments])
    run.main()


def rows(tmp_path) -> list[list[str]]:
    with (tmp_path / "out" / run.TABLE).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))[1:]


def test_seconds_are_divided_by_the_references_and_the_fastest_is_first(tmp_path, monkeypatch, capsys, ran):
    held(tmp_path, monkeypatch, slow="seed = 150", never="seed = 0", fast="seed = 62")
    assert [row[:3] for row in rows(tmp_path)] == [
        ["fast", "0.620", "62.0"], ["slow", "1.500", "150.0"], ["never", "", "0.0"],
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "fast needed 62.0 s, 0.62 times the 100.0 s of the reference" in said
    assert "never came to the end of its steps without reaching it, after 0 s: IoU 0.500" in said
    assert ran == ["reference", "slow", "never", "fast"]


def test_what_was_measured_is_not_measured_again_unless_the_reference_is_old(tmp_path, monkeypatch, capsys, ran):
    held(tmp_path, monkeypatch, mine="seed = 50")
    held(tmp_path, monkeypatch, mine="seed = 50")
    held(tmp_path, monkeypatch, other="seed = 60")
    assert ran == ["reference", "mine", "other"]
    held(tmp_path, monkeypatch, "--reference-hours", "1e-9", third="seed = 70")
    assert ran[3:] == ["reference", "third"]
    assert [row[0] for row in rows(tmp_path)] == ["mine", "other", "third"]
    held(tmp_path, monkeypatch, "--threads", "1", mine="seed = 50")  # other conditions: what was is put aside, and kept
    assert ran[5:] == ["reference", "mine"] and len(list((tmp_path / "out").glob("mine-*"))) == 2
    assert [row[:3] for row in rows(tmp_path)] == [["mine", "0.500", "50.0"]], "others cannot be compared with it"


def test_after_an_update_of_the_code_all_is_measured_again(tmp_path, monkeypatch, ran):
    held(tmp_path, monkeypatch, mine="seed = 50")
    monkeypatch.setattr(run, "version_of_code", lambda: "another")
    held(tmp_path, monkeypatch, mine="seed = 50")
    assert ran == ["reference", "mine"] * 2
    assert len(list((tmp_path / "out").glob("mine-*"))) == 2, "what was is put aside, and kept"


def test_a_reference_that_does_not_get_there_is_an_error(tmp_path, monkeypatch, ran):
    monkeypatch.setattr(run, "run_recipe", lambda *_: Reached("time", 1800.0, 1, 3, 0.2, 1))
    with pytest.raises(SystemExit, match="The reference used up its time"):
        held(tmp_path, monkeypatch, mine="seed = 50")


def test_errors_are_sentences(tmp_path, monkeypatch, ran):
    with pytest.raises(SystemExit, match="Error: The recipe mine sets 'output_dir'"):
        held(tmp_path, monkeypatch, mine="output_dir = 'x'")
    monkeypatch.setattr(sys, "argv", ["contest", str(tmp_path / "none.toml")])
    with pytest.raises(SystemExit, match="Error: .*none.toml"):
        run.main()
    monkeypatch.setattr(sys, "argv", ["contest", str(tmp_path)])
    with pytest.raises(SystemExit, match="Error: The recipe .* cannot be read: Is a directory"):
        run.main()
    monkeypatch.setattr(sys, "argv", ["contest", "--iou", "1.5", "mine.toml"])
    with pytest.raises(SystemExit) as refused:
        run.main()
    assert refused.value.code == 2

    def stop(*_):
        raise Stopped("stage-1 goes on after step 7")

    monkeypatch.setattr(run, "run_recipe", stop)
    with pytest.raises(SystemExit, match="Stopped. stage-1 goes on after step 7; start again to go on."):
        held(tmp_path, monkeypatch, mine="seed = 50")
    assert not ran


# ---------------------------------------------------------------------------------------------------------------------
# The leaderboard


def with_board(on: bool) -> Numbers:
    numbers = Numbers()
    return replace(numbers, rules=replace(numbers.rules, leaderboard_seconds=on))


def test_the_leaderboard_has_the_time_of_who_handed_in_a_recipe_if_the_rules_say_so(tmp_path):
    judges = Judges(None, None, None, lambda file: Entered(0.62, f"{file.name} needed 62 s."))
    evidence = Evidence({})
    assert look_at_recipe(tmp_path, evidence, judges, with_board(True)) is evidence
    assert look_at_recipe(None, evidence, judges, with_board(True)) is evidence
    (tmp_path / RECIPE).write_text(TINY)
    assert look_at_recipe(tmp_path, evidence, judges, with_board(False)) is evidence
    seen = look_at_recipe(tmp_path, evidence, judges, with_board(True))
    assert seen.notes == ("The contest: recipe.toml needed 62 s.",)
    unreadable = replace(seen, unreadable="It is no zip.")
    board = results_of(grade(unreadable, Numbers()), with_board(True), 1, [], of_reference=seen.of_reference)
    assert board["leaderboard"] == [{"name": "seconds to IoU 0.90 (reference: 1)", "value": 0.62, "order": "asc"}]


def test_a_hand_ins_recipe_costs_nothing_whatever_it_is(tmp_path, monkeypatch):
    file = tmp_path / RECIPE
    file.write_text("output_dir = '/'")
    assert enter(file, 1000, 4096, tmp_path).of_reference is None
    file.write_text(TINY)
    assert "no time was left" in enter(file, 5, 4096, tmp_path).words

    def fail(arguments, folder, seconds):
        raise GraderError("-m took longer than 1000 s.")

    monkeypatch.setattr(judge, "run_trusted", fail)
    assert enter(file, 1000, 4096, tmp_path) == Entered(
        None, "recipe.toml was not measured: -m took longer than 1000 s."
    )
