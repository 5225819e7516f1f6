"""The rules that a teacher edits: what they take off, when a hand-in is late or one too many, and what students see."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from grading.autograder import run as autograder
from grading.autograder.grade import Judges
from grading.autograder.run import grade_into, grade_on_gradescope
from grading.grades.numbers import Numbers, with_settings
from grading.grades.results import not_graded, results_of
from grading.grades.rubric import Alignment, Evidence, Lora, Todos, grade
from grading.grades.rules import LINES, RULES, RulesError, read_rules
from grading.grades.submission import (
    METADATA,
    MetadataError,
    Submission,
    days_late,
    read_submission,
    results_that_stay,
)
from grading.grades.teacher_page import page
from grading.handed_out.banners import TODOS
from grading.handed_out.record import ROOT, Change
from hand_ins import hand_in, write_zip
from stand_ins import ready_at_once

SHIPPED = read_rules()
GOOD = {"lora_1": Lora(None), "lora_2": Lora(None)}
ALIGNED = Alignment(ious=(0.9, 0.8), held_out=(0.7, 0.8))
EVIDENCE = Evidence({}, todos=Todos({todo: () for todo in TODOS}), alignment=ALIGNED, loras=GOOD)
DUE = datetime(2024, 11, 1, 23, 59, tzinfo=timezone(timedelta(hours=9)))


def numbers(**rules) -> Numbers:
    return Numbers(rules=replace(SHIPPED, **rules))


def points(evidence: Evidence, **rules) -> float:
    return results_of(grade(evidence, numbers(**rules)), numbers(**rules), 1, [])["score"]


# ---------------------------------------------------------------------------------------------------------------------
# What is taken off


def test_missing_items_cost_all_or_a_share_each():
    without_report = replace(EVIDENCE, missing={"lora_1": "lora_1 is missing."})
    without_two = replace(EVIDENCE, missing={"lora_1": "It is missing.", "lora_2": "It is missing."})
    assert [points(without_report, missing_item=share) for share in (1.0, 0.1, 0.0)] == [0, 13.5, 15]
    assert [points(without_two, missing_item=share) for share in (1.0, 0.1, 0.0)] == [0, 8, 10]
    said = grade(without_report, numbers(missing_item=0.1))[1].output
    assert said.startswith("For each item that is missing, 10 % of the score are taken off. Without this rule it would")
    assert points(EVIDENCE, missing_item=1.0) == 20


def test_shares_add_up_to_all_at_most():
    changed = replace(EVIDENCE, changes=(Change("train.py", "train.py is changed."),), report="It has 3 pages.")
    assert points(changed, changes=0.5, long_report=0.25) == 5
    assert points(changed, changes=0.75, long_report=0.75) == 0
    said = grade(changed, numbers(changes=0.5, long_report=0.25))
    assert "50 % of the score" in said[0].output and "25 % of the score" in said[0].output
    assert "Without these rules it would be 10 points" in said[1].output


def test_late_days_cost_what_the_rules_say():
    late = {days: replace(EVIDENCE, days_late=days) for days in (0, 1, 2, 3, 12)}
    assert [points(one) for one in late.values()] == [20] * 5
    assert [points(one, late_day=0.1) for one in late.values()] == [20, 18, 16, 14, 0]
    assert [points(one, late_day=0.2, late_free_days=2) for one in late.values()] == [20, 20, 20, 16, 0]
    assert [points(one, late_last_day=2) for one in late.values()] == [20, 20, 20, 0, 0]
    hand_in, task_1, *_ = grade(late[2], numbers(late_day=0.1))
    assert "As it came 2 days late, 20 % of the score are taken off." in hand_in.output and not hand_in.passed
    assert task_1.score == 8 and "Without this rule it would be 10 points" in task_1.output
    free = grade(late[1], numbers(late_day=0.1, late_free_days=1))[0]
    assert free.passed and "Late days: 1. They cost nothing." in free.output
    assert "late" not in grade(EVIDENCE, numbers(late_day=0.1))[0].output.lower()


# ---------------------------------------------------------------------------------------------------------------------
# The file


def edited(folder: Path, before: str, after: str) -> Path:
    text = RULES.read_text(encoding="utf-8")
    assert before in text
    path = folder / "rules.toml"
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


def test_a_teacher_edits_the_file(tmp_path):
    path = edited(tmp_path, 'missing_item = "all"', 'missing_item = "12.5 %"')
    assert read_rules(path) == replace(SHIPPED, missing_item=0.125)
    path = edited(tmp_path, "[visibility_of]", '[visibility_of]\n"Task 2*" = "hidden"\n"Hand-in" = "after_due_date"')
    rules = read_rules(path)
    shown = {line: rules.visibility_at(line) for line in LINES}
    assert {line for line, when in shown.items() if when == "hidden"} == {n for n in LINES if n.startswith("Task 2")}
    assert shown["Hand-in"] == "after_due_date" and shown["Task 1: TODO (4-1)"] == "visible"


@pytest.mark.parametrize(
    "before, after, words",
    [
        ('missing_item = "all"', "missing_item = 1", 'missing_item is 1, but must be "all", "none", or a share'),
        ('late_day = "none"', 'late_day = "110 %"', "late_day is '110 %', but must be"),
        ("attempts = 0", "attempts = -1", "attempts is -1, but must be a whole number from 0 on"),
        ("attempts = 0", "attempts = true", "attempts is True, but must be a whole number"),
        ("both_loras_wrong = 0.0", "both_loras_wrong = inf", "both_loras_wrong is inf, but must be a number"),
        (
            "both_loras_wrong = 0.0",
            "both_loras_wrong = 10.5",
            "both_loras_wrong is 10.5, but must be a number from 0 to 10",
        ),
        ("task_2 = [0, 5, 10]", "task_2 = [true]", "but must be of points each a list such as [0, 5, 10]"),
        ("task_2 = [0, 5, 10]", 'task_2 = ["0", "5"]', "but must be of points each a list"),
        ("task_2 = [0, 5, 10]", f"task_2 = [1{'0' * 400}]", "but must be of points each a list"),
        ("attempts = 0", f"attempts = {'[' * 9000}", "rules.toml cannot be read: "),
        ("attempts = 0", f"attempts = {'1' * 5000}", "rules.toml cannot be read: "),
        ('late_day = "none"', 'late_day = "１０ %"', "but must be"),
        ("leaderboard = false", "leaderboard = 0", "leaderboard is 0, but must be true or false"),
        ('visibility = "visible"', 'visibility = "seen"', "visibility is 'seen', but must be one of visible, after"),
        ("[visibility_of]", '[visibility_of]\n"TODO (1)" = "hidden"', "'TODO (1)' is none of: Hand-in, Task 1: Contr"),
        ("[visibility_of]", '[visibility_of]\n"Hand-in" = "no"', "must be one of visible"),
        ("leaderboard = false", "", "rules.toml must have the rules leaderboard, too"),
        ("leaderboard = false", "leaderboard = false\nboard = 1", "has a rule 'board', which there is not; there are"),
        ("leaderboard = false", "leaderboard = no", "rules.toml cannot be read: "),
    ],
)
def test_what_cannot_be_a_rule_is_refused_with_a_sentence(tmp_path, before, after, words):
    with pytest.raises(RulesError) as caught:
        read_rules(edited(tmp_path, before, after))
    assert words in str(caught.value)


def test_rules_may_be_set_for_one_run():
    used = with_settings(Numbers(), ["missing_item=10 %", "late_day=5%", "leaderboard=true", "attempts=3", "seed=7"])
    assert used.rules == replace(SHIPPED, missing_item=0.1, late_day=0.05, leaderboard=True, attempts=3)
    assert used.seed == 7
    quoted = with_settings(Numbers(), ['missing_item="none"', 'visibility_of={"Task 1*" = "hidden"}'])
    assert quoted.rules == replace(SHIPPED, missing_item=0.0, visibility_of={"Task 1*": "hidden"})
    for wrong in ("missing_item=0.1", "leaderboard=yes", "attempts=many", "visibility=1", "rules=1"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            with_settings(Numbers(), [wrong])
    ended = subprocess.run(
        [sys.executable, "-m", "grading.autograder", "nowhere", "--set", "late_day=much"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stderr.startswith("Error: The rule late_day is 'much', but must be")


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train_steps=0", "above 0"),
        ("held_out=0", "above 0"),
        ("observe_seconds=0", "above 0"),
        ("threads=0", "above 0"),
        ("least_iou=5", "at most 1"),
        ("least_change=300.0", "at most 255"),
        ("seed=-1", "not below 0"),
        ("seed=4294967296", "at most 4294967295"),
        (f"seed={'[' * 9000}", "as in Python"),
        (f"guidance_scale=1{'0' * 400}", "as in Python"),
        ("guidance_scale=1e999", "finite"),
        ("train_steps=1.5", "same kind as 700"),
        ("lora_prompts=(1, 2)", "same kind as"),
        ("lora_prompts=()", "same kind as"),
        ("train_flags=(1,)", "same kind as ()"),
        ("lora_norm=(1.0,)", "same kind as (0.1, 1000.0)"),
        ("lora_norm=(5, 1)", "the smaller one first"),
    ],
)
def test_numbers_that_nothing_can_be_graded_with_are_refused_at_once(setting, words):
    with pytest.raises(ValueError) as caught:
        with_settings(Numbers(), [setting])
    assert words in str(caught.value)


def test_numbers_may_be_set_for_one_run():
    settings = ["lora_norm=(1, 2.5)", "warmup_steps=0", "least_iou=1", "train_flags=()", "lora_prompts=('a cat',)"]
    used = with_settings(Numbers(), settings)
    assert (used.lora_norm, used.warmup_steps, used.least_iou) == ((1.0, 2.5), 0, 1.0)
    assert (used.train_flags, used.lora_prompts) == ((), ("a cat",))


def test_the_page_shows_the_rules_that_were_used():
    used = numbers(missing_item=0.1)
    shown = page({"Kim": results_of(grade(EVIDENCE, used), used, 1, [])}, {"Kim": []}, used)
    assert "missing_item = 0.1" in shown and "late_day = 0.0" in shown


# ---------------------------------------------------------------------------------------------------------------------
# What students see


def test_each_line_has_its_own_visibility():
    used = numbers(visibility="after_published", visibility_of={"*": "hidden", "Task 1: TODO*": "visible"})
    results = results_of(grade(EVIDENCE, used), used, 1, [])
    assert results["visibility"] == "after_published"
    visible = [test["name"] for test in results["tests"] if test["visibility"] == "visible"]
    assert visible == [f"Task 1: TODO ({todo})" for todo in TODOS]
    assert {test["visibility"] for test in results["tests"]} == {"visible", "hidden"}
    assert {test["name"] for test in results["tests"]} == set(LINES)


def test_the_leaderboard_shows_what_was_measured_and_only_if_wanted():
    def board(evidence: Evidence, **rules):
        results = results_of(grade(evidence, numbers(**rules)), numbers(**rules), 1, [], evidence.mean_iou)
        return results.get("leaderboard")

    assert board(EVIDENCE, leaderboard=True) == [{"name": "mean IoU of Task 1", "value": 0.8}]
    assert board(EVIDENCE) is None
    assert board(replace(EVIDENCE, alignment=Alignment("it crashed.")), leaderboard=True) is None
    assert board(Evidence({}, unreadable="It is no archive."), leaderboard=True) is None


# ---------------------------------------------------------------------------------------------------------------------
# Gradescope's metadata


def metadata(time: datetime = DUE, **others) -> dict:
    return {
        "id": 1,
        "created_at": time.isoformat(),
        "assignment": {"due_date": DUE.isoformat(), "late_due_date": None, "total_points": "20.0"},
        "users": [{"email": "kim@example.com", "id": 2, "name": "Kim"}],
        "previous_submissions": [],
        **others,
    }


def read(folder: Path, said: object) -> Submission:
    path = folder / METADATA
    path.write_text(said if isinstance(said, str) else json.dumps(said), encoding="utf-8")
    return read_submission(path)


@pytest.mark.parametrize(
    "after, grace, days",
    [
        (timedelta(days=-3), 0, 0),
        (timedelta(0), 0, 0),
        (timedelta(seconds=1), 0, 1),
        (timedelta(minutes=10), 10, 0),
        (timedelta(minutes=10, seconds=1), 10, 1),
        (timedelta(days=1), 0, 1),
        (timedelta(days=1, seconds=1), 0, 2),
        (timedelta(days=1, minutes=10), 10, 1),
        (timedelta(days=1, minutes=10, seconds=1), 10, 2),
        (timedelta(days=6, hours=5), 10, 7),
        (timedelta(days=6), 10**400, 0),
    ],
)
def test_a_day_that_has_begun_is_a_late_day(tmp_path, after, grace, days):
    rules = replace(SHIPPED, late_grace_minutes=grace)
    assert days_late(read(tmp_path, metadata(DUE + after)), rules) == days
    elsewhere = (DUE + after).astimezone(timezone.utc)
    assert days_late(read(tmp_path, metadata(elsewhere)), rules) == days


def test_an_extension_counts_and_without_a_due_date_nothing_is_late(tmp_path):
    time = DUE + timedelta(days=2)

    def late(*own: timedelta | None, **others) -> int:
        users = [{"id": i, **({} if day is None else {"assignment": {"due_date": (DUE + day).isoformat()}})}
                 for i, day in enumerate(own)]  # fmt: skip
        return days_late(read(tmp_path, metadata(time, users=users, **others)), SHIPPED)

    assert late(None) == 2 and late(timedelta(0)) == 2
    assert late(timedelta(days=1)) == 1 and late(timedelta(days=3)) == 0
    assert late(timedelta(0), timedelta(days=1)) == 1, "of a group, who has the most time"
    assert late(None, assignment={"due_date": None}) == late(None, assignment=None) == 0


@pytest.mark.parametrize(
    "said",
    ["", "[]", "{}", '{"created_at": 7}', '{"created_at": "yesterday"}', '{"created_at": "2024-11-01T00:00:00"}'],
)
def test_damaged_metadata_is_told(tmp_path, said):
    with pytest.raises(MetadataError, match="submission_metadata.json cannot be used"):
        read(tmp_path, said)
    with pytest.raises(MetadataError):
        read_submission(tmp_path / "nowhere.json")


def before(hours: float, results: dict | None) -> dict:
    return {"submission_time": (DUE - timedelta(hours=hours)).isoformat(), "score": 0.0, "results": results}


def graded(score: float) -> dict:
    return {"score": score, "tests": [], "output": "old", "extra_data": {"gaps": []}}


def test_one_hand_in_too_many_keeps_the_result_before(tmp_path):
    failed = not_graded("the grader stopped.", Numbers())
    earlier = [before(1, graded(7)), before(50, graded(5)), before(0.5, failed), before(0.2, None)]
    submission = read(tmp_path, metadata(previous_submissions=earlier))
    assert results_that_stay(submission, SHIPPED) is None
    assert results_that_stay(submission, replace(SHIPPED, attempts=3)) is None, "what failed does not count"
    stays = results_that_stay(submission, replace(SHIPPED, attempts=2))
    assert stays["score"] == 7 and stays["tests"] == []
    assert "not graded, as each student may hand in 2 times. Points and reasons are those of" in stays["output"]
    assert "2024-11-01 22:59 UTC+09:00" in stays["output"]
    assert results_that_stay(submission, replace(SHIPPED, attempts=2, attempts_hours=24.0)) is None
    daily = results_that_stay(submission, replace(SHIPPED, attempts=1, attempts_hours=24.0))
    assert daily["score"] == 7 and "hand in once within 24 hours" in daily["output"]
    # One that was refused is no attempt of its own, and its result is not passed on under its time.
    again = [*earlier, before(0.1, stays)]
    submission = read(tmp_path, metadata(previous_submissions=again))
    assert results_that_stay(submission, replace(SHIPPED, attempts=3)) is None
    assert results_that_stay(submission, replace(SHIPPED, attempts=2)) == stays


def test_grading_on_gradescope_keeps_to_the_rules(tmp_path, monkeypatch, capsys):
    given = []

    def grading(*arguments, **named):
        given.append(named["days_late"])
        return {"score": 20}, []

    def ready(*_, **__):
        raise autograder.GraderError("it must not start")

    (tmp_path / "submission").mkdir()
    (tmp_path / METADATA).write_text(json.dumps(metadata(previous_submissions=[before(1, graded(7))])))
    monkeypatch.setattr(autograder, "ready", ready)
    assert grade_on_gradescope(tmp_path, tmp_path, ["attempts=1"])["score"] == 7
    assert json.loads((tmp_path / "results" / "results.json").read_text())["score"] == 7
    assert grade_on_gradescope(tmp_path, tmp_path, ["attempts=2"])["extra_data"]["graded"] is False

    monkeypatch.setattr(autograder, "ready", ready_at_once)
    monkeypatch.setattr(autograder, "grade_into", grading)
    (tmp_path / METADATA).write_text(json.dumps(metadata(DUE + timedelta(days=1, hours=1))))
    assert grade_on_gradescope(tmp_path, tmp_path, []) == {"score": 20}
    assert capsys.readouterr().out == ""
    (tmp_path / METADATA).write_text("{")
    assert grade_on_gradescope(tmp_path, tmp_path, []) == {"score": 20}
    assert given == [2, 0]
    assert "so nothing counts as late, and attempts are not counted" in capsys.readouterr().out


def test_the_late_days_reach_the_points(tmp_path, monkeypatch):
    child = (
        "import json, sys\njob = json.loads(sys.argv[-1])\n"
        "for name in ('results', 'gallery'):\n"
        "    json.dump(job['days_late'], open(f\"{job['output']}/{name}.json\", 'w'))\n"
    )
    command = ["-c", child]
    told = grade_into(tmp_path / "x", tmp_path / "r.json", tmp_path, [], [], [], 60.0, command, days_late=3)
    assert told == (3, 3)

    judges = Judges(lambda parts: EVIDENCE.todos, lambda parts: ALIGNED, lambda files: (GOOD, ()))
    monkeypatch.setattr("grading.autograder.job.real_judges", lambda *_: judges)
    path = write_zip(hand_in(), tmp_path / "1.zip")
    for days, score in ((0, 20), (3, 14)):
        settings = ["late_day=10 %", "leaderboard=true"]
        autograder.run_job(autograder.Job(str(path), str(tmp_path), [], settings, [], 60.0, str(tmp_path), days))
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["score"] == score, results
        assert results["leaderboard"][0]["value"] == 0.8
