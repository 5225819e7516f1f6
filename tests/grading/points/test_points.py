"""Points by hand: kept, merged, checked by the rules, in the table and on the page, in a real browser, too."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from grading.autograder.job import write_results
from grading.grades.by_hand import STORE, Entry, Points, PointsError, ahead, read_file, read_folder, write_store
from grading.grades.form import data_block, form_data
from grading.grades.numbers import Numbers
from grading.grades.results import marks, not_graded, results_of, write_atomically
from grading.grades.rubric import Alignment, Evidence, Lora, Todos, grade, share_left
from grading.grades.rules import Allowed, RulesError, read_rules
from grading.grades.teacher_files import TeacherFiles
from grading.handed_out.banners import TODOS
from grading.handed_out.record import ROOT
from grading.points import merge

NUMBERS = Numbers()
RULES = NUMBERS.rules
EVIDENCE = Evidence(
    {},
    todos=Todos({todo: () for todo in TODOS}),
    alignment=Alignment(ious=(0.9,), held_out=(0.9,)),
    loras={"lora_1": Lora(None), "lora_2": Lora("It is noise.")},
)
EVIL = "</script><script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"
PAGE = "0123456789abcdef"
NAMES = ("Kim", "=1+cmd()", EVIL, "__proto__", "Lee")


def entry(time: int, hand_in: str, field: str, value: float | None) -> Entry:
    return Entry(f"2026-11-30T10:00:{time:02d}.000Z", hand_in, field, value)


def result(evidence: Evidence = EVIDENCE, **rules) -> dict:
    used = replace(NUMBERS, rules=replace(RULES, **rules))
    return results_of(grade(evidence, used), used, 1, [], left=share_left(evidence, used.rules))


def grade_into(output: Path, names=NAMES, page: str = PAGE, numbers: Numbers = NUMBERS) -> None:
    """What a grading leaves: results, page and table."""
    results = {name: result() for name in names}
    results["Not graded"] = not_graded("the grader stopped.", NUMBERS)
    folders = {name: f"hand-in-{i}" for i, name in enumerate(results)}
    for name, folder in folders.items():
        (output / folder).mkdir(parents=True, exist_ok=True)
        (output / folder / merge.RESULTS).write_text(json.dumps(results[name]))
    if not (output / STORE).exists():
        write_store(output, Points(page))
    TeacherFiles(output, folders, numbers).write(results, dict.fromkeys(results, ()))


def table(output: Path) -> dict[str, dict[str, str]]:
    with (output / "grades.csv").open(newline="", encoding="utf-8-sig") as file:
        return {row["hand-in"]: row for row in csv.DictReader(file)}


def saved(path: Path, *entries: Entry, page: str = PAGE) -> Path:
    write_atomically(path, json.dumps(Points(page).with_entries(entries).as_json()))
    return path


def points_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["points", *map(str, arguments)])
    merge.main()


# ---------------------------------------------------------------------------------------------------------------------
# What they come to


def test_the_last_entry_counts_and_an_empty_one_takes_back():
    points = Points("").with_entries(
        [entry(2, "Kim", "task_2", 10), entry(1, "Kim", "task_2", 0), entry(1, "Lee", "report", -5)]
    )
    assert points.current() == {("Kim", "task_2"): 10, ("Lee", "report"): -5}
    taken_back = points.with_entries([entry(3, "Kim", "task_2", None)])
    assert taken_back.current() == {("Lee", "report"): -5} and len(taken_back.entries) == 4


def test_points_by_hand_are_added_or_take_the_place_of_the_proposal():
    plain = marks(result(), {})
    assert (plain.task_1, plain.task_2, plain.total, plain.by_hand) == (10, 5, 15, "")
    own = marks(result(), {"task_2": 10, "task_1_1": 4.5, "report": -2})
    assert (own.total, own.task_2, own.task_1_1, own.report) == (22.5, 10, 4.5, -2)
    assert own.by_hand == "Task 2: 10 in place of 5; Task 1-1: 4.5; Report: -2"
    assert marks(result(), {"report": -20}).total == 0
    assert marks(not_graded("it stopped.", NUMBERS), {"task_2": 10}) is None


def test_what_the_rules_take_off_is_taken_off_points_by_hand_too():
    late = result(replace(EVIDENCE, days_late=1), late_day=0.1)
    own = marks(late, {"task_2": 10, "task_1_1": 5})
    assert (own.task_1, own.task_2, own.task_1_1, own.total) == (9, 9, 4.5, 22.5)
    halves = result(replace(EVIDENCE, days_late=1), late_day=0.15)
    assert marks(halves, {"task_1_1": 2.5}).task_1_1 == 2.13, "2.125, halves up, as the page's form shows it"
    missing = result(replace(EVIDENCE, missing={"lora_2": "It is missing."}))
    assert marks(missing, {"task_2": 10, "task_1_1": 5}).total == 0


def test_the_rules_say_which_points_there_are(tmp_path):
    assert [RULES.by_hand["task_2"].allows(value) for value in (0, 5, 10, 7, 15)] == [True, True, True, False, False]
    assert [RULES.by_hand["task_1_1"].allows(value) for value in (0, 4.5, 5, 5.1, -1)] == [True] * 3 + [False] * 2
    without = RULES.changed("by_hand", '{task_2 = [], task_1_1 = [0, 5], report = "0 to 3"}').by_hand
    assert not without["task_2"].is_used and without["report"] == Allowed(0, 3)
    for wrong in ('"5 to 0"', '"many"', "5", "[nan]", '"0 to inf"'):
        with pytest.raises(RulesError, match="The rule by_hand is"):
            RULES.changed("by_hand", f"{{task_2 = {wrong}, task_1_1 = [], report = []}}")
    with pytest.raises(RulesError, match="a table of task_2, task_1_1, report"):
        RULES.changed("by_hand", "{task_2 = []}")
    assert read_rules().by_hand == RULES.by_hand


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is lost


def test_points_go_into_the_table_and_survive_a_second_grading(tmp_path, monkeypatch, capsys):
    output = tmp_path / "grades"
    grade_into(output)
    assert table(output)["Kim"]["total"] == "15" and read_folder(output).entries == ()
    first = saved(tmp_path / "a.json", entry(1, "Kim", "task_2", 10), entry(2, "=1+cmd()", "task_1_1", 5))
    other = saved(tmp_path / "b.json", entry(3, "Kim", "task_1_1", 2), entry(2, "=1+cmd()", "task_1_1", 5))
    points_command(monkeypatch, other, first, "--grades", output)
    assert "3 points by hand are in" in capsys.readouterr().out

    def shown() -> list[str]:
        rows = table(output)
        assert not [name for name in rows if name.startswith("=")]
        return [rows[name]["total"] for name in ("Kim", "'=1+cmd()", "Lee", "Not graded")]

    assert shown() == ["22", "20", "15", ""]
    assert table(output)["Kim"]["by hand"] == "Task 2: 10 in place of 5; Task 1-1: 2"
    grade_into(output)
    assert shown() == ["22", "20", "15", ""]
    saved(output / "points_by_hand (1).json", entry(4, "Lee", "report", -5))  # a browser saved it there itself
    grade_into(output)
    assert shown() == ["22", "20", "10", ""]


def test_reasons_in_any_script_are_read_whatever_the_machine_writes_in(tmp_path):
    """Windows has encodings of its own; here it is ASCII."""
    grade_into(tmp_path, ["Kim"])
    graded = result(replace(EVIDENCE, notes=("홍길동.txt is no part of a hand-in.",)))
    write_results(tmp_path / "hand-in-0" / merge.RESULTS, graded)
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "utf8=0", "-m", "grading.points", "--grades", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and "0 points by hand are in" in done.stdout, done.stderr


def test_points_of_a_hand_in_that_is_gone_are_kept_and_told(tmp_path, monkeypatch, capsys):
    output = tmp_path / "grades"
    grade_into(output)
    points_command(monkeypatch, saved(tmp_path / "a.json", entry(1, "Kim", "task_2", 10)), "--grades", output)
    grade_into(output, ("Lee",))
    sentence = "Task 2 of &#x27;Kim&#x27;, 10, is kept but does not count, as there is no such hand-in here."
    assert sentence in (output / "index.html").read_text(encoding="utf-8")
    grade_into(output)
    assert table(output)["Kim"]["total"] == "20"


def test_the_pages_own_fields_say_what_can_be_given(tmp_path, monkeypatch):
    """The command that the page shows does not repeat the rules of its grading, which it knows."""
    output, rules = tmp_path / "grades", RULES.changed("by_hand", '{task_2 = "0 to 10", task_1_1 = [], report = []}')
    grade_into(output, numbers=replace(NUMBERS, rules=rules))
    points_command(monkeypatch, saved(tmp_path / "a.json", entry(1, "Kim", "task_2", 7.5)), "--grades", output)
    assert table(output)["Kim"]["total"] == "17.5"
    with pytest.raises(SystemExit, match="Task 2 of 'Kim' is 11, but by the rules it is from 0 to 10"):
        points_command(monkeypatch, saved(tmp_path / "b.json", entry(2, "Kim", "task_2", 11)), "--grades", output)


def test_what_the_page_says_of_points_is_said_anew(tmp_path, monkeypatch):
    output, page = tmp_path / "grades", tmp_path / "grades" / "index.html"
    grade_into(output)
    points_command(monkeypatch, saved(tmp_path / "a.json", entry(1, "Gone", "task_2", 5)), "--grades", output)
    assert "Task 2 of &#x27;Gone&#x27;, 5, is kept but does not count" in page.read_text(encoding="utf-8")
    points_command(monkeypatch, saved(tmp_path / "b.json", entry(2, "Gone", "task_2", None)), "--grades", output)
    assert "Gone" not in page.read_text(encoding="utf-8").partition("<table>")[0]


def test_points_of_another_grading_are_not_taken_unless_that_is_meant(tmp_path, monkeypatch, capsys):
    """Last term's file, still among the downloads, has students of the same names."""
    output = tmp_path / "grades"
    grade_into(output)
    file = saved(tmp_path / "a.json", entry(1, "Kim", "report", -20), page="fedcba9876543210")
    with pytest.raises(SystemExit, match="a.json is of another grading than .*--other-grading. Nothing was changed"):
        points_command(monkeypatch, file, "--grades", output)
    assert table(output)["Kim"]["total"] == "15" and read_folder(output).entries == ()
    points_command(monkeypatch, file, "--grades", output, "--other-grading")
    assert table(output)["Kim"]["total"] == "0"


def test_a_clock_that_is_ahead_is_told(tmp_path, monkeypatch, capsys):
    """What it entered counts before all that others enter until then."""
    output = tmp_path / "grades"
    grade_into(output)
    ahead_of_all = Entry("2999-01-01T00:00:00.000Z", "Kim", "task_2", 0)
    files = (saved(tmp_path / "a.json", ahead_of_all), saved(tmp_path / "b.json", entry(1, "Kim", "task_2", 10)))
    points_command(monkeypatch, *files, "--grades", output)
    said = "was entered at 2999-01-01T00:00:00.000Z, by a clock that is ahead"
    assert capsys.readouterr().out.count(f"Task 2 of 'Kim' {said}") == 1
    grade_into(output)
    assert said in (output / "index.html").read_text(encoding="utf-8")
    noon = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
    for hour, number in ((11, 0), (12, 0), (14, 1)):
        points = Points("").with_entries([Entry(f"2026-11-30T{hour}:00:00.000Z", "Kim", "task_2", 0)])
        assert len(ahead(points, noon)) == number


def test_points_can_be_merged_before_there_is_a_page(tmp_path, monkeypatch, capsys):
    points_command(monkeypatch, saved(tmp_path / "a.json", entry(1, "Kim", "task_2", 10)), "--grades", tmp_path)
    assert "the next grading uses them" in capsys.readouterr().out
    grade_into(tmp_path)
    assert table(tmp_path)["Kim"]["total"] == "20"


WRONG_FILES = [
    ("{", "cannot be used as points by hand"),
    ("[]", "cannot be used as points by hand"),
    ('{"format": 2, "collection": "a", "entries": []}', "another format than 1"),
    ('{"format": 1, "collection": "a", "entries": [{"time": "now"}]}', "cannot be used as points by hand"),
    (json.dumps(Points("").with_entries([entry(1, "Kim", "task_9", 1)]).as_json()), "is no entry"),
    (json.dumps(Points("").with_entries([entry(1, "Kim", "task_2", float("nan"))]).as_json()), "is no entry"),
    (json.dumps(Points("").with_entries([entry(1, "Kim", "task_2", 10**400)]).as_json()), "OverflowError"),
    (
        json.dumps(Points("").with_entries([entry(1, "\ud800", "task_2", 5)]).as_json()),
        "cannot be used as points by hand",
    ),
    (json.dumps(Points("\ud800").as_json()), "cannot be used as points by hand"),
    (
        json.dumps(Points("").with_entries([Entry("2026-06-31T25:00:00.000Z", "Kim", "task_2", 5)]).as_json()),
        "cannot be",
    ),
    (json.dumps(Points(PAGE).with_entries([entry(1, "Kim", "task_2", 7)]).as_json()), "by the rules it is one of 0, 5"),
    (json.dumps(Points(PAGE).with_entries([entry(1, "Kim", "task_1_1", 50)]).as_json()), "it is from 0 to 5"),
]


@pytest.mark.parametrize("text, words", WRONG_FILES)
def test_a_wrong_file_changes_nothing_and_is_told(tmp_path, monkeypatch, text, words):
    output = tmp_path / "grades"
    grade_into(output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit, match=words):
        points_command(monkeypatch, tmp_path / "a.json", "--grades", output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_damaged_store_stops_a_grading_before_it_begins_and_is_left_alone(tmp_path, capsys):
    grade_into(tmp_path)
    (tmp_path / STORE).write_text("{damaged")
    with pytest.raises(PointsError, match="left as it is"):
        TeacherFiles(tmp_path, {}, NUMBERS)
    assert (tmp_path / STORE).read_text() == "{damaged"


def test_a_file_that_is_damaged_meanwhile_does_not_stop_it(tmp_path, capsys):
    saved(tmp_path / STORE, entry(1, "Kim", "task_2", 10))
    files = TeacherFiles(tmp_path, {"Kim": "Kim"}, NUMBERS)
    (tmp_path / "points_by_hand (1).json").write_text("{half")
    files.write({"Kim": result()}, {"Kim": ()})
    assert table(tmp_path)["Kim"]["total"] == "20" and "cannot be used" in capsys.readouterr().out


def test_names_cannot_end_the_pages_data():
    block = data_block(form_data({EVIL: result()}, {}, Points("").with_entries([entry(1, EVIL, "report", 0)]), RULES))
    assert (
        block.count("<") == 2 and json.loads(block[block.index("{") : -len("</script>")])["hand_ins"][0]["name"] == EVIL
    )


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium, which apt installs: what the page's script does was not tried")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    made = Browser(folder / "profile", folder / "downloads")
    yield made, folder / "downloads"
    made.close()


def put(browser: Browser, place: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const i = document.querySelector('[data-input=\"{place}\"]'); i.value = '{value}';"
        " i.dispatchEvent(new Event('change')); }})()".replace("}})", "})")
    )


def cell(browser: Browser, place: str) -> str:
    return browser.evaluate(f"document.querySelector('[data-cell=\"{place}\"]').textContent")


def test_a_teacher_gives_points_on_the_page(browser, tmp_path, monkeypatch, capsys):
    browser, downloads = browser
    grade_into(tmp_path)
    browser.open(tmp_path / "index.html")
    assert browser.evaluate("document.getElementById('points-bar').hidden")
    assert [cell(browser, f"{i}:total") for i in range(6)] == ["15"] * 5 + [""]
    for i in range(len(NAMES)):
        put(browser, f"{i}:task_2", "10")
        put(browser, f"{i}:task_1_1", str(i))
    put(browser, "0:report", "-2.5")
    put(browser, "1:task_1_1", "6")  # more than there is: refused, the 1 before stays
    assert "from 0 to 5" in browser.evaluate("document.querySelector('[data-input=\"1:task_1_1\"]').validationMessage")
    put(browser, "4:task_2", "")  # taken back
    totals = [cell(browser, f"{i}:total") for i in range(5)]
    assert totals == ["17.5", "21", "22", "23", "19"]

    # Chromium may open the page in another process, and brings there in the background what the first one has stored.
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    browser.open(tmp_path / "index.html")  # the browser kept them
    assert [cell(browser, f"{i}:total") for i in range(5)] == totals
    assert browser.evaluate("document.querySelector('[data-input=\"0:report\"]').value") == "-2.5"
    browser.evaluate("document.getElementById('points-save').click()")
    file = downloads / "points_by_hand.json"
    browser.until("true")
    for _ in range(600):
        if file.is_file():
            break
        browser.evaluate("new Promise(done => setTimeout(done, 100))")
    assert len(read_file(file).entries) == 12

    points_command(monkeypatch, file, "--grades", tmp_path)
    shown = [name if not name.startswith("=") else f"'{name}" for name in NAMES]
    assert [table(tmp_path)[name]["total"] for name in shown] == totals
    browser.open(tmp_path / "index.html")
    assert browser.evaluate("document.getElementById('points-bar').hidden")
    assert [cell(browser, f"{i}:total") for i in range(5)] == totals
    assert browser.evaluate("document.title") == "Grades" and not browser.errors


def test_what_a_clock_ahead_entered_is_set_right_on_the_page_and_takes_no_other_field_along(
    browser, tmp_path, monkeypatch
):
    browser, _ = browser
    grade_into(tmp_path)
    file = saved(tmp_path / "a.json", Entry("2999-01-01T00:00:00.000Z", "Kim", "task_2", 0))
    points_command(monkeypatch, file, "--grades", tmp_path)
    browser.open(tmp_path / "index.html")
    put(browser, "0:task_2", "10")
    put(browser, "0:report", "-1")
    assert cell(browser, "0:total") == "19"
    kept = "Object.values(localStorage).filter((text) => text.includes('2999')).flatMap((text) => JSON.parse(text))"
    times = browser.evaluate(f"{kept}.map((entry) => entry.field + ' ' + entry.time).sort().join()")
    report, task_2 = times.split(",")
    assert task_2 == "task_2 2999-01-01T00:00:00.001Z" and report < "report 2999"


def test_points_that_the_browser_keeps_of_a_deleted_grading_are_offered(browser, tmp_path):
    browser, _ = browser
    grade_into(tmp_path / "old", ("Cho", "Han"), page="old")
    browser.open(tmp_path / "old" / "index.html")
    put(browser, "0:task_1_1", "3")
    grade_into(tmp_path / "new", ("Han", "Cho"), page="new")
    browser.open(tmp_path / "new" / "index.html")
    assert [cell(browser, f"{i}:total") for i in range(2)] == ["15", "15"]
    assert browser.evaluate("document.getElementById('points-others').textContent") == "1"
    browser.evaluate("document.querySelector('#points-take button').click()")
    assert [cell(browser, f"{i}:total") for i in range(2)] == ["15", "18"]


def test_nothing_but_the_pages_own_script_runs(browser, tmp_path):
    browser, _ = browser
    grade_into(tmp_path, page="its own")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    smuggled = page.replace(
        "<h1>", "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\"><h1>"
    )
    (tmp_path / "index.html").write_text(smuggled, encoding="utf-8")
    browser.open(tmp_path / "index.html")
    assert browser.evaluate("document.title") == "Grades" and cell(browser, "0:total") == "15"
    assert any("Content Security Policy" in error for error in browser.errors)
