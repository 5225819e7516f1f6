"""The program that takes a GPU's figures within a time limit, on a CPU: what fails, hangs or comes too late."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from gpu.memory import memory_table, peaks
from gpu.processes import CompiledRecipe, Pytest
from gpu_rows import Rows
from processes import ROOT


def test_a_part_that_fails_is_told_and_the_next_goes_on(tmp_path, capsys):
    rows = Rows(tmp_path, seconds=1e6)
    rows.part("bad", 0, lambda: 1 / 0)
    rows.part("good", 0, lambda: "all is well")
    rows.part("late", 1e7, lambda: pytest.fail("there is no time for it"))
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [part["outcome"].split(":")[0] for part in parts.values()] == ["failed", "done", "left out"]
    assert "ZeroDivisionError" in parts["bad"]["why"]
    assert "all is well" in capsys.readouterr().out
    assert "- bad: failed" in (tmp_path / "tables.md").read_text()


def test_at_the_limit_the_program_ends_with_what_it_has(tmp_path):
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_rows.py"), "--output", str(tmp_path), "--seconds", "3"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert time.monotonic() - start < 60
    assert "The time is over" in run.stdout, run.stdout + run.stderr
    assert json.loads((tmp_path / "results.json").read_text())["ended"].startswith("The time is over")


def test_a_recipe_in_a_process_of_its_own_waits_until_it_may_be_timed(tmp_path):
    child = CompiledRecipe(tmp_path / "log", "ours", "tiny_sd", batch_size=1, steps=1)
    child.pause()
    time.sleep(0.2)
    child.go_on()
    try:
        found = child.result(seconds=300)
    finally:
        child.end()
    assert found["seconds"] > 0 and found["paused"] >= 0.2
    assert child.process.wait(10) == 0


def test_a_process_that_fails_or_is_late_is_told(tmp_path):
    late = CompiledRecipe(tmp_path / "late", "ours", "tiny_sd", batch_size=1, steps=1)
    with pytest.raises(TimeoutError, match="not compiled in time"):
        late.result(seconds=0.1)
    late.end()
    wrong = CompiledRecipe(tmp_path / "wrong", "no recipe", "tiny_sd", batch_size=1, steps=1)
    with pytest.raises(RuntimeError, match="(?s)ended with 2.*'no recipe'"):
        wrong.result(seconds=300)


def test_outcomes_of_tests_are_read_from_their_report(tmp_path):
    file = tmp_path / "test_this.py"
    file.write_text(
        "def test_good(record_property):\n    record_property('difference', 0.5)\n\n"
        "def test_bad():\n    assert 1 == 2, 'one is not two'\n"
    )
    tests = Pytest(tmp_path / "log", tmp_path, str(file))
    assert tests.wait(300)
    good, bad = tests.results()
    assert good["outcome"] == "passed" and good["recorded"] == {"difference": "0.5"}
    assert bad["outcome"] == "failure" and "one is not two" in bad["why"][0]
    assert "one is not two" in tests.said().split("= FAILURES =")[0], "is told only at the end"


def test_memory_is_counted_for_each_batch_with_and_without_checkpointing():
    rows = peaks("lora", "no", "tiny_sd", [1, 2])
    assert [(row["batch_size"], row["checkpointing"]) for row in rows] == [
        (1, False), (2, False), (1, True), (2, True),
    ]  # fmt: skip
    assert all(row["peak"] > row["weights"] + row["gradients"] + row["optimizer"] > 0 for row in rows)
    assert memory_table(rows).count("| lora | no |") == 2
