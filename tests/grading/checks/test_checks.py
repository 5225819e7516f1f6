"""The checks of the TODO places: no wrong solution passes, no right one fails, and each is blamed on itself only."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import Callable

import pytest
import torch

from grading.checks import __main__ as program
from grading.checks import observe
from grading.checks import run as checks
from grading.checks.places import USED_AROUND
from grading.checks.run import check, check_all, judge
from grading.handed_out.banners import TODO_FILES, TODOS, BannerError, extract, fill, read_parts, read_source
from grading.starter.make import blank
from solutions import CONV, INDENT, MID, NOT_STRICT, PAIRS, RIGHT, SOLUTION, WRONG, between_banners

ROOT = Path(__file__).resolve().parents[3]
TASK_1 = ROOT / "task_1_controlnet"
EMPTY = {t: s for file in TODO_FILES for t, s in extract(blank(read_source(TASK_1 / file))).items()}
pytestmark = pytest.mark.usefixtures("one_thread")


def failed(results: list[checks.Result]) -> dict[str, str]:
    """The messages of the failed checks by TODO."""
    messages: dict[str, str] = {}
    for result in results:
        if not result.passed:
            messages[result.todo] = f"{messages.get(result.todo, '')} {result.message}"
    return messages


@pytest.fixture(scope="module")
def check_once() -> Callable[[str, str], list[checks.Result]]:
    """`check`, which runs each text once in this process, whichever test asks first."""
    return lru_cache(maxsize=None)(check)


@pytest.fixture
def check_first(check_once) -> Callable[[str, str], list[checks.Result]]:
    """Checks a text, and after it the solution's other places, so far as they take hundredths of a second.

    (2) and (3) are looked at after all the texts of a place: test_the_texts_of_a_place_leave_nothing_behind.
    """

    def run(todo: str, text: str) -> list[checks.Result]:
        others = {other: SOLUTION[other] for other in ("1", "4-1", "4-2") if other != todo}
        return [*check_once(todo, between_banners(todo, text)), *check_all(others)]

    return run


def named(table: list[tuple]) -> list:
    return [pytest.param(*row, id=f"({row[0]}) {row[1]}") for row in table]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_solution_passes(seed):
    results = check_all(SOLUTION, seed)
    assert not failed(results)
    assert {result.todo for result in results} == set(TODOS)


@pytest.mark.parametrize("todo, name, words, text", named(WRONG))
def test_a_wrong_solution_is_blamed_on_itself_only(todo, name, words, text, check_first):
    messages = [result for result in check_first(todo, text) if result.message]
    assert [result.todo for result in messages] == [todo], "one fault, one sentence"
    assert not messages[0].passed and words in messages[0].message
    assert messages[0].message.startswith(f"TODO ({todo}): ")
    assert torch.is_grad_enabled()


def test_rounding_is_no_fault_whatever_the_numbers():
    """Gradients of a convolution are sums in which large numbers cancel: how they are added up shows."""
    text = next(text for todo, form, text in RIGHT if form == "by matrices")
    assert not [failed(check("1", between_banners("1", text), seed)) for seed in range(12)
                if failed(check("1", between_banners("1", text), seed))]  # fmt: skip


def test_a_message_stays_one_that_can_be_read():
    text = (
        f"{CONV}\nfor i in range(99):\n    module.register_parameter(f'{{i}}' + 999 * 'a', nn.Parameter(torch.ones(1)))"
    )
    (message,) = [result.message for result in check("1", between_banners("1", text)) if result.message]
    assert len(message) < 2100 and message.startswith("TODO (1): the weights are called")


@pytest.mark.parametrize("todo", ["3", "4-1", "4-2"])
def test_the_names_that_a_text_may_not_hide_are_those_that_forward_uses(todo):
    file = next(file for file, todos in TODO_FILES.items() if todo in todos)
    source = (TASK_1 / file).read_text(encoding="utf-8")
    lines = [number for number, line in enumerate(source.splitlines(), 1) if "#### TODO (" in line]
    places = list(zip(lines[::2], lines[1::2]))
    functions = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "forward"]
    (forward,) = [node for node in functions if node.lineno < places[-1][0] < node.end_lineno]
    names = [node for part in forward.body for node in ast.walk(part) if isinstance(node, ast.Name)]
    names = [node for node in names if not any(start < node.lineno < end for start, end in places)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {one.arg for one in forward.args.args}
    assert {node.id for node in names} - own == set(USED_AROUND[todo])


@pytest.mark.parametrize("todo", TODOS)
def test_switched_off_gradients_are_one_fault(todo):
    text = f"{' ' * INDENT[todo]}torch.set_grad_enabled(False)\n{SOLUTION[todo]}"
    (message,) = [result.message for result in check(todo, text) if result.message]
    assert "gradients are switched off for the whole program" in message


def test_two_faults_are_two_sentences():
    text = f"for skip, residual in {PAIRS} if is_controlnet else ():\n    skip += residual.detach()"
    messages = [result.message for result in check("4-1", between_banners("4-1", text)) if result.message]
    assert len(messages) == 2 and "changed in place" in messages[0] and "gradients do not reach" in messages[1]


@pytest.mark.parametrize("todo, form, text", named(NOT_STRICT))
def test_a_copy_that_is_whole_but_not_strict_is_noted(todo, form, text):
    results = check(todo, between_banners(todo, text))
    assert all(result.passed for result in results)
    (note,) = [result.message for result in results if result.message]
    assert note.startswith("TODO (2): the copy is whole, but not strict") and "costs nothing" in note
    shown = checks.report(results)
    assert "right  TODO (2)" in shown and "       Note: the copy is whole" in shown


@pytest.mark.parametrize("todo, form, text", named(RIGHT))
def test_a_right_solution_passes_in_any_form(todo, form, text, check_first):
    assert all(result.passed and not result.message for result in check_first(todo, text))


@pytest.mark.parametrize("todo", TODOS)
def test_the_texts_of_a_place_leave_nothing_behind(todo, check_once):
    for text in [row[-1] for row in (*WRONG, *RIGHT) if row[0] == todo]:
        check_once(todo, between_banners(todo, text))
    assert not [result.message for result in check_all(SOLUTION) if result.message]


def test_code_that_leaves_the_condition_is_found():
    text = "            pass\n        sample = sample + mid_block_additional_residual\n"
    messages = failed(check_all({**SOLUTION, "4-2": text}))
    assert list(messages) == ["4-2"]
    assert "without ControlNet, where the residuals are None, the code stops with TypeError" in messages["4-2"]


def test_there_are_enough_of_both():
    assert len({(todo, text) for todo, _, _, text in WRONG}) == len(WRONG) >= 40
    assert len({(todo, text) for todo, _, text in RIGHT}) == len(RIGHT) >= 15
    assert {row[0] for row in WRONG} == {row[0] for row in RIGHT} == set(TODOS)


@pytest.mark.parametrize("right", TODOS)
def test_a_right_one_passes_among_empty_ones(right):
    messages = failed(check_all({**EMPTY, right: SOLUTION[right]}))
    assert set(messages) == set(TODOS) - {right}
    assert all("NotImplementedError" in message for message in messages.values())


@pytest.mark.parametrize("right", TODOS)
def test_several_wrong_ones_are_each_named(right):
    wrong = {todo: next(row for row in WRONG[i::7] if row[0] == todo) for i, todo in enumerate(TODOS) if todo != right}
    texts = {todo: between_banners(todo, row[3]) for todo, row in wrong.items()}
    messages = failed(check_all({**SOLUTION, **texts}))
    assert set(messages) == set(wrong)
    assert all(row[2] in messages[todo] for todo, row in wrong.items())


@pytest.mark.parametrize("todo", TODOS)
def test_observations_are_judged_alike_in_another_process(todo):
    texts = [SOLUTION[todo], EMPTY[todo], *(between_banners(todo, row[3]) for row in WRONG[::9] if row[0] == todo)]
    for text in texts:
        packed = observe.pack(observe.observe(todo, text, seed=3))
        assert judge(todo, 3, observe.unpack(packed)) == check(todo, text, seed=3)
        assert failed(judge(todo, 4, observe.unpack(packed))), "the numbers of another seed must not do"


@pytest.mark.parametrize("forged", [{}, {"gradients_on": True}, {"runs": [], "convolutions": [], "is_module": True}])
def test_forged_observations_do_not_pass(forged):
    for todo in TODOS:
        assert failed(judge(todo, 0, forged))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100])
def test_damaged_observations_are_refused(data):
    with pytest.raises(ValueError, match="not observations"):
        observe.unpack(data)


def mutated_copy(folder: Path, todo: str, text: str) -> Path:
    for file in TODO_FILES:
        source = read_source(TASK_1 / file)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(fill(source, {todo: text} if todo in extract(source) else {}).encode())
    return folder


def run_program(program, monkeypatch, *arguments: object) -> object:
    """Its exit status, where it exits."""
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as exit:
        return exit.code
    return None


def test_the_program_reports_every_place(tmp_path, monkeypatch, capsys):
    assert not run_program(program, monkeypatch, "--task-1", TASK_1)
    assert capsys.readouterr().out.count("right  TODO") == 5
    mutated_copy(tmp_path, "3", between_banners("3", MID))
    assert run_program(program, monkeypatch, "--task-1", tmp_path)
    output = capsys.readouterr().out
    assert output.count("right  TODO") == 4 and "WRONG  TODO (3)" in output and "self.controlnet_down_blocks" in output


def test_the_program_names_damaged_banners(tmp_path, monkeypatch):
    file = mutated_copy(tmp_path, "3", SOLUTION["3"]) / "diffusion/controlnet.py"
    file.write_text(file.read_text().replace("######## TODO (2) ########", "# TODO 2", 1))
    message = run_program(program, monkeypatch, "--task-1", tmp_path)
    assert "diffusion/controlnet.py" in message and "TODO (2)" in message


def test_a_start_in_the_wrong_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["checks"])
    with pytest.raises(SystemExit, match="There is no folder task_1_controlnet: start this in the repository's root"):
        program.main()


def test_observations_are_written_place_by_place(tmp_path, monkeypatch):
    run_program(observe, monkeypatch, "--task-1", TASK_1, "--seed", 5, "--todo", "1", "4-2", "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "4-2.safetensors"]
    for todo in ("1", "4-2"):
        seen = observe.unpack((tmp_path / f"{todo}.safetensors").read_bytes())
        assert not failed(judge(todo, 5, seen))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BannerError, match="controlnet.py is missing"):
        read_parts(tmp_path)
    (tmp_path / "diffusion").write_text("no folder")
    with pytest.raises(BannerError, match="controlnet.py cannot be read: Not a directory"):
        read_parts(tmp_path)


def test_windows_line_ends_change_nothing():
    assert not failed(check_all({todo: text.replace("\n", "\r\n") for todo, text in SOLUTION.items()}))
