"""The starter is the solution without its five texts; its checks say what is missing; filled in, it is the solution."""

from __future__ import annotations

import ast
import builtins
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from grading.handed_out.banners import TODO_FILES, TODOS, BannerError, emptied, extract, fill, read_parts, read_source
from grading.handed_out.record import HANDED_OUT
from grading.handed_out.record import main as record_handed_out
from grading.handed_out.taken import take_texts
from grading.starter import make as program
from grading.starter.make import (
    ASSISTANT_RULES,
    STARTER_TEXTS,
    STUDENT_PARTS,
    StarterError,
    strip_outputs,
    student_makefile,
    write_starter,
)
from kit.environment import digest
from processes import run_python

ROOT = Path(__file__).resolve().parents[3]
TASK_1 = "task_1_controlnet"
SOLUTION = read_parts(ROOT / TASK_1)
TEACHER_ROOMS = ("autograder", "grades", "gradescope", "questions", "sandbox", "starter")


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "starter"
    write_starter(folder)
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fill_in(folder: Path, parts: dict[str, str]) -> None:
    for name, todos in TODO_FILES.items():
        path = folder / TASK_1 / name
        path.write_bytes(fill(read_source(path), {t: parts[t] for t in todos if t in parts}).encode())


def test_filling_in_the_solution_gives_the_solution_to_the_byte(starter, tmp_path):
    shutil.copytree(starter, tmp_path / "filled")
    fill_in(tmp_path / "filled", SOLUTION)
    for name in TODO_FILES:
        solution = (ROOT / TASK_1 / name).read_bytes()
        assert (tmp_path / "filled" / TASK_1 / name).read_bytes() == solution
        assert (starter / TASK_1 / name).read_bytes() != solution


def test_each_place_is_a_comment_and_an_immediate_error(starter):
    parts = read_parts(starter / TASK_1)
    assert list(parts) == list(TODOS)
    for todo, text in parts.items():
        *comment, last = text.splitlines()
        assert comment and all(line.lstrip().startswith("# ") and len(line) <= 120 for line in comment)
        assert last.lstrip().startswith(f'raise NotImplementedError("TODO ({todo}): ')
        assert len(last) - len(last.lstrip()) == len(comment[0]) - len(comment[0].lstrip())
    for name in TODO_FILES:
        compile(read_source(starter / TASK_1 / name), name, "exec")


def test_nothing_else_is_changed(starter):
    copied = [name for name in files_of(starter) if name not in ASSISTANT_RULES]
    changed = {name for name in copied if (starter / name).read_bytes() != (ROOT / name).read_bytes()}
    places = {f"{TASK_1}/{name}" for name in TODO_FILES}
    assert places < changed
    assert {name for name in changed - places if not name.endswith(".ipynb")} == {"Makefile"}
    for name in copied:
        assert (starter / name).stat().st_mode == (ROOT / name).stat().st_mode, name


def test_rules_for_assistants_unless_the_teacher_wants_none(starter, tmp_path, monkeypatch):
    rules = (starter / "AGENTS.md").read_text(encoding="utf-8")
    for name in ASSISTANT_RULES:
        assert (starter / name).read_bytes() == (STARTER_TEXTS / name).read_bytes()
        assert not (ROOT / name).exists(), "they are about a student's copy"
    assert "@AGENTS.md" in (starter / "CLAUDE.md").read_text(encoding="utf-8")
    for name, todos in TODO_FILES.items():
        assert f"{TASK_1}/{name}` ({', '.join(todos)})" in rules
    monkeypatch.setattr("sys.argv", ["starter", "--no-assistant-rules", "--output", str(tmp_path / "s")])
    program.main()
    assert files_of(tmp_path / "s") == [name for name in files_of(starter) if name not in ASSISTANT_RULES]


def test_students_see_what_changed_after_the_release(starter):
    assert (starter / "CHANGES.md").read_bytes() == (ROOT / "CHANGES.md").read_bytes()


def test_what_is_changed_in_the_hand_out_is_named(starter, tmp_path):
    shutil.copytree(starter, tmp_path / "work")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def keep() -> str:
        command = [sys.executable, "-m", "grading.handed_out"]
        return subprocess.run(
            command, cwd=tmp_path / "work", env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    assert "Changed" not in keep(), "what is between the banners is no part of it"
    (tmp_path / "work" / TASK_1 / "examples.py").write_text("")
    assert f"Changed: {TASK_1}/examples.py. If students have an earlier hand-out, tell them in CHANGES.md." in keep()
    assert "Changed" not in keep()


def test_no_solution_and_no_secret_is_in_it(starter):
    names = files_of(starter)
    for name in names:
        folder, _, inside = name.partition("/")
        if folder in ("grading", "tests"):
            assert {inside, inside.partition("/")[0]} & set(STUDENT_PARTS[folder])
        assert not name.startswith(tuple(f"grading/{room}/" for room in TEACHER_ROOMS))
        assert not name.startswith((".ci/", "build/", "runs/"))
        assert not name.endswith((".safetensors", ".pt")) or name.startswith("tiny_sd/")
    lines = {line.strip() for text in SOLUTION.values() for line in text.splitlines()}
    secret = {line for line in lines if len(line) > 20 and not line.endswith("(")}
    assert len(secret) >= 8
    for name in names:
        try:
            text = (starter / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not [line for line in secret if line in text], name
    for name in names:
        if name.startswith("tests/"):
            text = (starter / name).read_text(encoding="utf-8")
            assert "ControlNetModel" not in text and "train.py" not in text, name


class SameNames(ast.NodeTransformer):
    """Makes all names the same but those of functions of Python and of a library."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("_")

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return ast.Name("_")

    def visit_Call(self, node: ast.Call) -> ast.Call:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        known = isinstance(node.func, ast.Attribute) or hasattr(builtins, name)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        return ast.Call(ast.Name(name if known else "_"), [self.visit(value) for value in values], [])

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self.generic_visit(ast.GeneratorExp(node.elt, node.generators))


def forms(source: str) -> set[str]:
    """Its expressions, whatever their names: what can be copied with other ones."""
    kinds = (ast.Call, ast.BinOp, ast.ListComp, ast.GeneratorExp)
    found = (node for node in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(node, kinds))
    return {ast.unparse(SameNames().visit(copy.deepcopy(node))) for node in found}


@pytest.mark.skipif(sys.version_info < (3, 9), reason="ast.unparse is of Python 3.9")
def test_no_solution_is_in_it_under_other_names(starter):
    solution = set().union(*map(forms, SOLUTION.values()))
    telling = {form for form in solution if form.count("_") > 3 and form.startswith(("Conv2d(", "tuple("))}
    assert len(telling) == 3 and "tuple((_ + _ for _, _ in zip(_, _)))" in telling
    telling |= {form.replace("tuple(", "", 1)[:-1] for form in telling if form.startswith("tuple(")}
    sums_and_zeros = {"_ + _", "zeros_(_)", "load_state_dict(state_dict())"}
    assert sums_and_zeros <= solution
    for path in starter.rglob("*.py"):
        told = telling | (sums_and_zeros if path.parent == starter / "grading" / "checks" else set())
        assert not forms(path.read_text(encoding="utf-8")) & told, path


@pytest.mark.parametrize("name", ["checks", "hand_in", "report"])
def test_the_students_programs_need_nothing_that_students_do_not_have(starter, name):
    environment = {variable: value for variable, value in os.environ.items() if variable != "PYTHONPATH"}
    command = [sys.executable, "-m", f"grading.{name}", "--help"]
    run = subprocess.run(command, cwd=starter, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.startswith(f"usage: python -m grading.{name} "), run.stderr


def test_notebooks_have_no_outputs(starter):
    notebooks = list(starter.rglob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    content = (ROOT / TASK_1 / "inference.ipynb").read_text()
    before, after = (json.loads(text)["cells"] for text in (content, strip_outputs(content)))
    assert [cell["source"] for cell in before] == [cell["source"] for cell in after]


def make_test(folder: Path, ends: int) -> subprocess.CompletedProcess:
    """`make test` in a starter, in whose environment pytest says where it was started, and ends with this status."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    tests = f'echo "in $PWD with $OMP_NUM_THREADS thread"; exit {ends}'
    python.write_text(f'#!/bin/sh\ncase "$*" in "-m pytest "*) {tests};; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    made_of = digest(folder / "requirements.txt", folder / "pyproject.toml", root=folder)
    (folder / ".venv" / "ready").write_text(f"here\n{made_of}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    return subprocess.run(["make", "test"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def run_its_tests(folder: Path, printed: str) -> subprocess.CompletedProcess:
    """The command that `make test` printed and ran in a starter, started without importing PyTorch again."""
    (command,) = (line.partition("$ ")[2] for line in printed.splitlines() if " -m pytest " in line and "$ " in line)
    return run_python(*shlex.split(command)[1:], folder=folder, environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": ""})


@pytest.mark.parametrize("ends", [0, 1])
def test_make_test_starts_the_tests_and_ends_as_they_do(starter, tmp_path, ends):
    folder = tmp_path / "work"
    shutil.copytree(starter, folder)
    run = make_test(folder, ends)
    assert f"in {folder} with 1 thread" in run.stdout and (run.returncode != 0) == ends, run.stdout + run.stderr


def test_make_test_says_what_is_missing_and_passes_with_the_solution(starter, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(starter, folder)
    printed = make_test(folder, 1).stdout
    run = run_its_tests(folder, printed)
    assert run.returncode != 0 and "5 failed" in run.stdout, run.stdout + run.stderr
    for todo in TODOS:
        assert f"TODO ({todo}): this is still to be done: NotImplementedError: TODO ({todo}): " in run.stdout
    right = {todo: text for todo, text in SOLUTION.items() if todo != "4-2"}
    fill_in(folder, {**right, "4-2": "            sample = mid_block_additional_residual\n"})
    run = run_its_tests(folder, printed)
    assert run.returncode != 0 and "1 failed, 4 passed" in run.stdout, run.stdout + run.stderr
    assert "TODO (4-2): `sample` is the residual, in place of its sum" in run.stdout
    fill_in(folder, SOLUTION)
    run = run_its_tests(folder, printed)
    assert run.returncode == 0 and "5 passed" in run.stdout, run.stdout + run.stderr


def test_the_students_makefile():
    makefile = student_makefile(
        "# Commands.\nPYTHON ?= python3\n\n.PHONY: demo test starter\n\ndemo:\n\tpython -m kit demo\n\n"
        "# For teachers.\nstarter:\n\tpython -m kit starter\n\n"
        "test:\n\tpython -m kit test\n"
    )
    assert makefile == (
        "# Commands.\nPYTHON ?= python3\n\n.PHONY: demo test\n\ndemo:\n\tpython -m kit demo\n\n"
        "test:\n\tpython -m kit test\n"
    )


def test_an_old_starter_is_replaced_and_work_is_not(starter, tmp_path):
    folder = tmp_path / "starter"
    shutil.copytree(starter, folder)
    (folder / "old.txt").write_text("from last year")
    write_starter(folder)
    assert files_of(folder) == files_of(starter)
    fill_in(folder, {"1": SOLUTION["1"]})
    with pytest.raises(StarterError, match="has worked in"):
        write_starter(folder)
    assert read_parts(folder / TASK_1)["1"] == SOLUTION["1"]


def test_a_starter_with_what_somebody_trained_is_kept(starter, tmp_path):
    folder = tmp_path / "starter"
    shutil.copytree(starter, folder)
    (folder / "runs" / "lora-custom").mkdir(parents=True)
    with pytest.raises(StarterError, match="has worked in"):
        write_starter(folder)
    assert (folder / "runs" / "lora-custom").is_dir()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, ROOT, tmp_path / "thesis.tex"):
        with pytest.raises(StarterError, match="is not a starter"):
            write_starter(folder)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(StarterError, match="git checkout"):
        write_starter(tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_program_says_what_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["starter", "--output", str(tmp_path / "s")])
    program.main()
    assert f"{len(files_of(tmp_path / 's'))} files" in capsys.readouterr().out
    (tmp_path / "s" / TASK_1 / "diffusion" / "controlnet.py").unlink()
    monkeypatch.setattr("sys.argv", ["starter", "--output", str(tmp_path / "s")])
    with pytest.raises(SystemExit, match="has worked in"):
        program.main()


def test_a_starter_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["starter", "--output", str(tmp_path / "file" / "s")])
    with pytest.raises(SystemExit, match="^Error: .*file"):
        program.main()


BANNER = "    ######## TODO ({}) ########\n"


def banners(*todos: str) -> str:
    return "def f():\n" + "".join(BANNER.format(todo) + f"    after_{i} = {i}\n" for i, todo in enumerate(todos))


@pytest.mark.parametrize(
    "source, message",
    [
        (banners("1"), r"Line 2: TODO \(1\) has no second banner"),
        (banners("1", "1", "1"), r"Line 6: TODO \(1\) has more than its two banner lines"),
        (banners("1", "1", "1", "1"), r"Line 6: TODO \(1\) has more than its two"),
        (banners("1", "2", "2", "1"), r"Line 4: a banner of TODO \(2\) stands after only one banner of TODO \(1\)"),
        (banners("1", "2", "1", "2"), r"Line 4: a banner of TODO \(2\)"),
        (banners("2", "2"), r"banner lines of TODO \(1\) are missing"),
        ("", r"banner lines of TODO \(1\) are missing"),
        (banners("1") + "    ######## TODO 1 ########\n", r"line 4 looks like a damaged banner: '######## TODO 1"),
        (banners("1") + "    ######## TODO (2) ########\n", r"TODO \(1\) has no second banner"),
        (banners("1") + "    # TODO (1) a\n" * 2, r"Line 5: TODO \(1\) has more than its two banner lines"),
        (banners("1", "1", "1").replace(") #", ") solved #"), r"Line 6: TODO \(1\) has more than its two"),
        (banners("1").replace("########", "#"), r"Line 2: TODO \(1\) has no second banner"),
    ],
)
def test_damaged_banners_are_named(source, message):
    with pytest.raises(BannerError, match=message):
        extract(source, todos=["1"])


FORMS = [
    "######## TODO (1) solved ########",
    "######## TODO (1) ######## done, see below",
    "######## END TODO (1) ########",
    "######### TODO (1) #########",
    "#### TODO (1) ####",
    "# TODO (1)",
    "#TODO(1)",
    "######## Todo ( 1 ) ########",
    "########\tTODO\t(1)\t########   ",
    "######## TODO （1） ########",
    "######## TODO: (1) ########",
    "# TODO [1]",
    "# ######## TODO (1) ########",
    "# END OF TODO (1)",
    "#%% my TODO (1)",
    "######## TODO（１） ########",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_a_banner_is_what_names_its_todo(form, which):
    lines = banners("1", "1", "4-1", "4-1").split("\n")
    for i in which:
        lines[1 + 2 * i] = f"    {form}"
    source = "\n".join(lines)
    assert extract(source, ["1", "4-1"]) == {"1": "    after_0 = 0\n", "4-1": "    after_2 = 2\n"}
    assert "x = 1" in fill(source, {"1": "    x = 1"}) and "after_0" not in fill(source, {"1": "    x = 1"})
    assert emptied(source, ["1", "4-1"]) == emptied(banners("1", "1", "4-1", "4-1"), ["1", "4-1"])


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_code_in_another_encoding_is_named_as_the_student_knows_it(tmp_path, encoding):
    """Not by the grader's folder, in which no student can look."""
    for name in TODO_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / TASK_1 / name).read_bytes())
    name = "diffusion/controlnet.py"
    (tmp_path / name).write_bytes("# 제어\n".encode(encoding))
    with pytest.raises(BannerError) as refused:
        read_parts(tmp_path)
    assert str(refused.value) == f"{name} is not UTF-8 text: store it as UTF-8 in your editor."
    (tmp_path / name).unlink()
    with pytest.raises(BannerError, match=f"^{name} is missing: copy it from what was handed out.$"):
        read_parts(tmp_path)


def test_a_long_line_is_one_of_many_characters_whatever_bytes_they_have(tmp_path):
    for name in TODO_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / TASK_1 / name).read_bytes())
    with (tmp_path / "diffusion/controlnet.py").open("a", encoding="utf-8") as file:
        file.write(f"# {'제어' * 400}\n")
    assert take_texts(tmp_path, 20_000) == SOLUTION
    with (tmp_path / "diffusion/controlnet.py").open("a", encoding="utf-8") as file:
        file.write(f"# {'제어' * 500}\n")
    with pytest.raises(BannerError, match="a line of 1,002 characters, of at most 1,000"):
        take_texts(tmp_path, 20_000)


def test_damaged_banners_are_not_recorded_as_handed_out(tmp_path, monkeypatch):
    def damaged(*_):
        raise BannerError("Line 7: TODO (2) has no second banner line.")

    monkeypatch.setattr("grading.handed_out.record.current_code", damaged)
    monkeypatch.setattr("sys.argv", ["handed_out"])
    before = HANDED_OUT.read_bytes()
    with pytest.raises(SystemExit, match="^Error: Line 7: TODO .2. has no second"):
        record_handed_out()
    assert HANDED_OUT.read_bytes() == before


@pytest.mark.parametrize(
    "form",
    ["#### todo (4 - 1)", "# TODO (4\u20131): skips", "######## TODO (4-1) mine ########", "# # TODO (4\u22121)"],
)
def test_both_parts_of_a_number_count(form):
    source = banners("4-2", "4-2", "4-1", "4-1").replace("######## TODO (4-1) ########", form)
    assert extract(source, ["4-1", "4-2"]) == {"4-2": "    after_0 = 0\n", "4-1": "    after_2 = 2\n"}


def test_places_that_overlap_are_refused_in_any_form():
    with pytest.raises(BannerError, match=r"Line 4: a banner of TODO \(2\) stands after only one banner of TODO \(1\)"):
        extract(banners("1", "2", "1", "2").replace("########", "##"), ["1", "2"])


def test_comments_about_a_place_are_no_banners():
    """Where the banners are as they were handed out, or more like it than the comments are."""
    source = banners("1", "1").replace("after_0 = 0", "# TODO (1): done\n    #### TODO (2) comes next\n    x = 1")
    text = "    # TODO (1): done\n    #### TODO (2) comes next\n    x = 1\n"
    assert extract(source, ["1"]) == {"1": text}
    assert extract(source.replace(") ########", ") mine ########"), ["1"]) == {"1": text}


def test_extract_and_fill():
    source = banners("1", "1", "4-2", "4-2")
    assert extract(source) == {"1": "    after_0 = 0\n", "4-2": "    after_2 = 2\n"}
    assert fill(source, extract(source)) == source
    assert fill(source, {}) == source
    assert extract(fill(source, {"1": "    x = 1"}))["1"] == "    x = 1\n"
    assert extract(fill(source, {"1": ""})) == {"1": "", "4-2": "    after_2 = 2\n"}
    windows = source.replace("\n", "\r\n")
    assert extract(windows)["1"] == "    after_0 = 0\r\n" and fill(windows, extract(windows)) == windows
    with pytest.raises(BannerError, match=r"TODO \(3\) are missing"):
        fill(source, {"3": ""})
    with pytest.raises(BannerError, match="banner line in it"):
        fill(source, {"1": BANNER.format("4-2")})


def test_the_links_of_its_pages_lead_to_files_that_it_has(starter):
    pages = [starter / name for name in files_of(starter) if name.endswith(".md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target)
    ]
    assert len(links) > 30
    assert [(str(page), target) for page, target in links if not (page.parent / target).exists()] == []
