"""Who imports whom: what docs/architecture.md says of the folders."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Whose code a folder may import, besides libraries and its own.
MAY_IMPORT = {
    "finetune": set(),
    "task_1_controlnet": {"finetune"},
    "task_2_lora": {"finetune"},
    "grading": {"finetune"},
    "tiny_sd": {"finetune", "task_1_controlnet"},  # whose metric measures the base's circles
    "page": {"finetune", "task_1_controlnet", "task_2_lora"},
}
FOLDERS = {*MAY_IMPORT, "benchmarks", "tests", "kit"}
# Tasks are run as scripts: what they import of themselves has no folder's name before it.
SCRIPTS = {"task_1_controlnet", "task_2_lora"}
SEES_SCRIPTS = {*SCRIPTS, "page"}


def homes(name):
    """The folders that have a module of this name at the top, as scripts see it."""
    return {
        folder
        for folder in SCRIPTS
        if (ROOT / folder / f"{name}.py").is_file() or any((ROOT / folder / name).glob("*.py"))
    }


def imported(path):
    """The first name of every module that a file imports from outside its package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_those_that_it_may_know(folder):
    files = [path for path in (ROOT / folder).rglob("*.py") if "sample_data" not in path.parts]
    assert files
    wrong = {}
    for path in files:
        for name in set(imported(path)):
            owners = {name} & FOLDERS or (homes(name) if folder in SEES_SCRIPTS else set())
            if owners and folder not in owners and not owners & MAY_IMPORT[folder]:
                wrong[f"{path.relative_to(ROOT)}: {name}"] = owners
    assert not wrong


def test_gradio_is_imported_by_the_pages_own_module_alone():
    files = {path.name: set(imported(path)) for path in (ROOT / "page").rglob("*.py")}
    assert [name for name, modules in files.items() if "gradio" in modules] == ["app.py"]


def test_the_rule_sees_a_forbidden_import(tmp_path):
    (tmp_path / "a.py").write_text(
        "import torch\nfrom fill50k import load_data\nfrom finetune.model.base import BaseModel\n"
    )
    assert set(imported(tmp_path / "a.py")) == {"torch", "fill50k", "finetune"}
    assert homes("fill50k") == {"task_1_controlnet"} and homes("torch") == set()


def test_the_rooms_of_finetune_know_only_lower_ones():
    """run/ keeps what any training is; model/ what is trained; data/ what it is trained on."""
    rooms = ["run", "model", "data"]
    for floor, room in enumerate(rooms):
        for path in (ROOT / "finetune" / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                    assert node.module.split(".")[0] not in rooms[floor + 1 :], path.name


def test_no_module_of_finetune_needs_itself():
    """Read from the top of one file to the top of the next, one comes to an end."""
    needs = {}
    for path in (ROOT / "finetune").rglob("*.py"):
        home = path.relative_to(ROOT).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        needs[".".join(home)] = {
            ".".join((*home[: -node.level], *node.module.split(".")))
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level and node.module
        }
    assert "finetune.run.checkpoints" in needs["finetune.run.saving"]
    while needs:
        ready = [name for name, needed in needs.items() if not needed & set(needs)]
        assert ready, f"a circle in {sorted(needs)}"
        needs = {name: needed for name, needed in needs.items() if name not in ready}
