"""Progress bars: drawn over and over where somebody looks, a line now and then where it is kept."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

import pytest

from finetune.run.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch) -> None:
    """Other tests run notebooks."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_a_file_gets_a_line_at_the_start_and_one_at_the_end():
    with redirect_stderr(io.StringIO()) as stream:
        bar = progress_bar(total=20_000, desc="Training", unit="step")
        for step in range(20_000):
            bar.update()
            if step % 10 == 0:
                bar.set_postfix({"loss": f"{step}"})
        bar.close()
    lines = [line for line in stream.getvalue().split("\n") if line.strip()]
    assert "\r" not in stream.getvalue() and len(lines) == 2
    assert "0/20000" in lines[0] and "20000/20000" in lines[1] and "loss=19990" in lines[1]


def test_a_long_run_gets_a_line_a_minute(monkeypatch):
    now = [0.0]
    with redirect_stderr(io.StringIO()) as stream:
        bar = progress_bar(total=600, desc="Training")
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(600):
            now[0] += 1.0
            bar.update()
        bar.close()
    assert 9 <= stream.getvalue().count("Training:") <= 13


def test_a_terminal_gets_a_bar():
    with redirect_stderr(Terminal()) as stream:
        for _ in progress_bar(range(3), mininterval=0):
            pass
    assert stream.getvalue().count("\r") >= 3
