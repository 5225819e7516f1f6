"""Links lead somewhere, the table of tests is the tests, notebooks are as small as they can be."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "tiny_sd/*.md", "grading/*.md", "findings/*.md")
    for page in ROOT.glob(pattern)
)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page):
    """What GitHub calls the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(file), f"{target} is no heading"


def test_the_table_of_tests_names_every_file_of_tests():
    page = (ROOT / "docs" / "tests.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?!tests/)(?:\w+/)+test_\w+\.py)`", page))
    there = {file.relative_to(ROOT / "tests").as_posix() for file in (ROOT / "tests").rglob("test_*.py")}
    assert named == there


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("task_*/*.ipynb")), ids=lambda path: path.parent.name)
def test_a_notebook_shows_its_pictures_and_stays_small(notebook):
    """A picture as JPEG and not as PNG, too, which is five times as large; no warnings, which name machines' paths."""
    assert notebook.stat().st_size < 600_000
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert not any("image/png" in output.get("data", {}) or output.get("name") == "stderr" for output in outputs)
