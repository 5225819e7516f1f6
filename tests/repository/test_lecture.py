"""The lecture's pages show what the files hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LECTURE = ROOT / "docs" / "lecture"
sys.path.insert(0, str(LECTURE))
from show_code import SHOWN, brought_up_to_date, code_of  # noqa: E402

sys.path.remove(str(LECTURE))
PAGES = sorted(LECTURE.glob("[1-9]*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_the_code_of_today(page):
    text = page.read_text(encoding="utf-8")
    assert SHOWN.search(text) and brought_up_to_date(text) == text


def test_what_is_shown_is_the_files_text_without_its_docstring():
    code = code_of("task_1_controlnet/diffusion/controlnet.py", "zero_convolution", None, None)
    assert code.startswith("def zero_convolution(") and "nn.init.zeros_(module.weight)" in code
    assert '"""' not in code and code.endswith("return module\n")
    part = code_of("finetune/objective.py", "seed_for", "mixed = 0", "return")
    assert part.startswith("mixed = 0\nfor number in numbers:\n    mixed =") and part.count("return") == 1


@pytest.mark.parametrize(
    "place, message",
    [
        ("finetune/objective.py no_such_function", "there is no no_such_function"),
        ('finetune/objective.py seed_for from "gone" to "return"', "has no lines from 'gone'"),
    ],
)
def test_a_place_that_is_gone_is_named(place, message):
    with pytest.raises(LookupError, match=message):
        brought_up_to_date(f"<!-- {place} -->\n```python\nold\n```\n")


def test_the_check_fails_on_a_stale_page(tmp_path):
    """The program by itself, on a copy of a page that shows something else."""
    folder = tmp_path / "docs" / "lecture"
    folder.mkdir(parents=True)
    (folder / "show_code.py").write_bytes((LECTURE / "show_code.py").read_bytes())
    (tmp_path / "a.py").write_text("def f():\n    return 1\n")
    page = folder / "1.md"
    page.write_text("<!-- a.py f -->\n```python\ndef f():\n    return 2\n```\n")
    command = [sys.executable, str(folder / "show_code.py")]
    stale = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert stale.returncode == 1 and "1.md shows code of yesterday: run `make docs`" in stale.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert "return 1" in page.read_text() and subprocess.run([*command, "--check"]).returncode == 0
