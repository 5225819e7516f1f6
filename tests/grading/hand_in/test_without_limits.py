"""The checks before a hand-in where nothing limits computing, as on Windows, and memory, as on macOS."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from grading.files import report_pdf
from grading.hand_in import pack

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def no_limits(monkeypatch):
    """The modules as they are where their import of `resource` failed."""
    for module in (pack, report_pdf):
        monkeypatch.setattr(module, "resource", None)
    monkeypatch.delattr(signal, "SIGXCPU", raising=False)


def test_the_hand_in_is_checked_without_limits_on_computing(no_limits, monkeypatch):
    started = {}

    def run(command, **how):
        started.update(how)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(pack.subprocess, "run", run)
    assert pack.check_todos(ROOT / "task_1_controlnet").mark == "right"
    assert started["preexec_fn"] is None and started["timeout"] > 0  # Windows refuses any other


def test_a_report_is_read_without_limits(no_limits, tmp_path, monkeypatch, capsys):
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4 damaged")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "argv", ["report_pdf", str(tmp_path / "report.pdf"), "20", "1000000000"])
    report_pdf.main()
    assert "cannot be read as a PDF" in capsys.readouterr().out
