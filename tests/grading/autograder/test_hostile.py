"""Hostile and broken hand-ins: each gets a result with a sentence, and nothing but its own result is changed by it.

The real sandbox runs the student's text with real limits; only what runs it there is a small program without PyTorch,
and what draws with the weights is left out.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from grading.autograder import student_code
from grading.autograder.alignment import train
from grading.autograder.grade import Judges, grade_hand_in
from grading.autograder.loras import judge_files
from grading.autograder.todos import FOLDER, judge_file
from grading.files.items import TASK_1
from grading.files.report_pdf import PdfReport, inspect_report
from grading.grades.numbers import Numbers
from grading.grades.rubric import Alignment, Todos
from grading.handed_out.banners import TODOS, read_parts
from grading.handed_out.record import ROOT, current_code
from grading.sandbox.limits import Limits, Outcome
from grading.sandbox.sandbox import Sandbox, namespace_command
from hand_ins import (
    FILE_OF,
    LORA_1,
    LORA_2,
    PDF,
    good_files,
    hand_in,
    lora_tensors,
    report,
    with_text,
    write_folder,
    write_zip,
)
from stand_ins import READ_TEXT

# So few threads that a fork bomb always has too many before their memory is too much: a process takes about 10 MiB.
NUMBERS = Numbers(memory_mib=200, disk_mib=16, threads=15)
# Stands in for train.py: runs the text of TODO (1), then writes what a training of the right solution would.
TRAINER = f"""{READ_TEXT}
names = {{"output": output}}
if "nn.Conv2d" not in text:
    exec(text, names)
shutil.copytree(pattern, names["output"] + "/controlnet", dirs_exist_ok=True)
print("trained")
exec(names.get("afterwards", ""), names)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")


@lru_cache(maxsize=1)
def code_now() -> dict[str, str]:
    return current_code()


@lru_cache(maxsize=None)
def inspect_content(content: bytes, folder: Path) -> PdfReport:
    path = folder / PDF
    path.write_bytes(content)
    return inspect_report(path)


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch, tmp_path_factory):
    """Each report is read once, in another process as always, and not again for every hand-in that has it."""
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(
        "grading.autograder.grade.inspect_report", lambda path: inspect_content(path.read_bytes(), folder)
    )


@pytest.fixture(autouse=True)
def handed_out(monkeypatch):
    """What was handed out is what is here now."""
    code = code_now()
    monkeypatch.setattr(student_code, "read_handed_out", lambda: code)
    monkeypatch.setattr("grading.autograder.grade.read_handed_out", lambda: code)


@pytest.fixture
def seconds() -> float:
    """The training's time: so long that every other limit comes first, however slow the machine is."""
    return 20.0


@pytest.fixture
def judges(shared, seconds, tmp_path) -> Judges:
    work = tmp_path / "weights"
    work.mkdir()

    def align(parts) -> Alignment:
        failed = train(parts, shared, NUMBERS, seconds, [tmp_path], work / "w.safetensors", program=("-c", TRAINER))
        return failed or Alignment(ious=(0.9,) * 5, held_out=(0.8,))

    return Judges(lambda parts: Todos({}), align, lambda files: (judge_files(files)[0], ()))


@pytest.fixture
def graded(judges, tmp_path):
    """Grades files or a path, and returns the points and the reasons by name."""

    def grade(what: dict[str, bytes] | Path) -> dict[str, tuple[float, str]]:
        path = write_zip(what, tmp_path / "hand_in.zip") if isinstance(what, dict) else what
        _, scores = grade_hand_in(path, judges, NUMBERS, tmp_path / f"work{len(os.listdir(tmp_path))}")
        return {score.name.partition(":")[0]: (score.score, score.output) for score in scores[::-1]}

    return grade


def points(result: dict[str, tuple[float, str]]) -> tuple[float, float]:
    return result["Task 1"][0], result["Task 2"][0]


def reasons(result: dict[str, tuple[float, str]]) -> str:
    return "\n".join(text for _, text in result.values())


def test_a_good_hand_in_gets_full_marks(graded):
    result = graded(hand_in())
    assert points(result) == (10, 10), reasons(result)
    assert "align with the conditions" in result["Task 1"][1] and "0.88" in result["Task 1"][1]
    assert result["Hand-in"][1].startswith("All items are there")


# What stands between the banners, and words of the reason for the zero. The program that runs it never gets further.
STOPPED = {
    "an endless loop": ("while True: pass", "it took longer than 2 s"),
    "sleeps": ("import time\ntime.sleep(99)", "it took longer than 2 s"),
    "a fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "more than 15 processes or threads"
    ),
    "a memory hog": ("x = []\nwhile True: x.append(bytes(10**6) + b'1')", "more than 200 MiB of memory"),
    "fills the disk": ("for i in range(10**4): open(f'{output}/{i}', 'wb').write(bytes(10**6))", "16 MiB to the disk"),
    "prints without end": ("while True: print('x' * 10000)", "it printed more than 8192 KiB"),
    "ignores signals": (
        "import signal, time\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
        "it took longer than 2 s",
    ),
    "a syntax error": ("module = = 1", "SyntaxError"),
    "an exception": ("raise RuntimeError('lost')", "RuntimeError: lost"),
    "not done": ("raise NotImplementedError('TODO (1): make it')", "NotImplementedError: TODO (1): make it"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "by signal 11"),
    "ends the program": ("import os\nos._exit(0)", "ended without writing a ControlNet"),
    "ends it with a status": ("import os\nos._exit(5)", "with status 5"),
    "patches what writes": ("import shutil\nshutil.copytree = lambda *a, **k: None", "without writing a ControlNet"),
    "imports from the network": (
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1/solution.py', timeout=1)", "URLError"
    ),
    "imports a file that is not used": ("import sys\nsys.path.insert(0, '..')\nimport my_solution", "No module named"),
    "reads the tests": (f"open({__file__!r})", "Error"),
    "reads the solution": (
        f"print(open({str(ROOT / TASK_1 / 'diffusion' / 'controlnet.py')!r}).read().split('TODO (1)')[1])", "Error"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name, seconds", [(name, 1.5 if "took longer" in words else 20.0) for name, (_, words) in STOPPED.items()]
)
def test_code_that_does_not_run_gets_a_sentence(graded, name, seconds):
    if name.startswith("reads") and not (os.geteuid() == 0 and namespace_command()):
        pytest.skip("only where namespaces hide the repository")
    text, words = STOPPED[name]
    result = graded(with_text("1", text))
    assert points(result) == (0, 10)
    assert "The code cannot be executed" in result["Task 1"][1] and words in result["Task 1"][1]
    assert "nn.init.zeros_" not in reasons(result)


# What the text does after the training, and words of the reason.
CHEATS = {
    "links to a file of the grader": (
        "import os\nos.remove(output + '/controlnet/config.json')\n"
        "os.symlink('/etc/passwd', output + '/controlnet/config.json')",
        "cannot be read",
    ),
    "another configuration": ("open(output + '/controlnet/config.json', 'w').write('{}')", "another configuration"),
    "a configuration that never ends": (
        "open(output + '/controlnet/config.json', 'w').write('[' * 90000)", "another configuration"
    ),
    "weights that are a pickle": (
        "import pickle\nopen(WEIGHTS, 'wb').write(pickle.dumps({'conv.weight': [1.0]}))", "is a pickle"
    ),
    "weights with a header bomb": (
        "open(WEIGHTS, 'wb').write((2**40).to_bytes(8, 'little') + b'{}')", "claims a header of"
    ),
    "weights of 10 GB": ("open(WEIGHTS, 'wb').truncate(15 * 2**20)", "is larger than"),
    "other weights": ("WRITE('mlp.weight', [4, 3], bytes(48))", "has no weights conv.weight"),
    "weights of another shape": ("WRITE('conv.weight', [3, 4], bytes(48))", "has the shape (3, 4), not (4, 3)"),
    "weights that are not finite": ("WRITE('conv.weight', [4, 3], b'\\xff' * 48)", "is not finite"),
}  # fmt: skip
HELPERS = """
import json
WEIGHTS = output + '/controlnet/diffusion_pytorch_model.safetensors'
def WRITE(name, shape, data):
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    open(WEIGHTS, 'wb').write(len(header).to_bytes(8, 'little') + header + data)
"""


@pytest.mark.parametrize("name", CHEATS)
def test_only_the_right_numbers_are_taken_from_the_training(graded, name):
    text, words = CHEATS[name]
    result = graded(with_text("1", f"afterwards = {HELPERS + text!r}"))
    assert points(result) == (0, 10)
    assert words in result["Task 1"][1], result["Task 1"]


def test_forged_results_change_nothing(graded, tmp_path):
    forged = '{"score": 20, "tests": [{"name": "Task 1", "score": 10, "max_score": 10}]}'
    results = tmp_path / "results.json"
    results.write_text("the grader's")
    results.chmod(0o666)
    text = f"""
import os
print('{forged}')
for path in ({str(results)!r}, '/autograder/results/results.json', 'results.json', output + '/metrics.json'):
    try: open(path, 'w').write('{forged}')
    except OSError: pass
open(output + '/forged', 'w').write('x')
raise SystemExit('all passed')
"""
    result = graded(with_text("1", text))
    assert points(result) == (0, 10)
    if os.geteuid() == 0:
        assert results.read_text() == "the grader's"


def test_a_daemon_and_litter_are_gone_before_the_next(graded):
    before = {process.pid for process in psutil.process_iter()}
    text = """
import os, time
open('/tmp/left-behind-by-a-daemon', 'w').close()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve('/bin/sleep', ['sleep', '54321'], {})
    os._exit(0)
time.sleep(0.2)
"""
    assert points(graded(with_text("1", text))) == (10, 10)
    left = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert not [process for process in left if process.info["cmdline"] == ["sleep", "54321"]]
    assert not os.path.exists("/tmp/left-behind-by-a-daemon")
    assert points(graded(hand_in())) == (10, 10)


# ---------------------------------------------------------------------------------------------------------------------
# The code's files


def source() -> str:
    return good_files()[FILE_OF["1"]].decode()


def changed_code(old: str, new: str, count: int = -1) -> dict[str, bytes]:
    assert old in source()
    return hand_in(**{FILE_OF["1"]: source().replace(old, new, count).encode()})


UNUSABLE = {
    "a damaged banner": (changed_code("######## TODO (1) ########", "######## TODO 1 ########", 1), "damaged banner"),
    "a missing banner": (changed_code("    ######## TODO (1) ########\n", "", 1), "has no second banner line"),
    "a banner too many": (
        changed_code("######## TODO (1) ########\n", 2 * "    ######## TODO (1) mine ########\n"),
        "has more than its two banner lines",
    ),
    "swapped banners": (changed_code("TODO (2)", "TODO (3)"), "two banner lines of TODO (2) are missing"),
    "not text": (hand_in(**{FILE_OF["1"]: b"\xff\xfe" * 100}), "not UTF-8"),
    "no file": (hand_in(**{FILE_OF["4-1"]: None}), "is missing"),
    "smuggled weights": (with_text("2", "w = [\n" + "1.25, 3.75, 2.5,\n" * 2000 + "]"), "at most 20,000"),
    "a line without end": (with_text("2", "#" * 250_000), "has a line of 250,008"),
    "a file without end": (changed_code("import torch", "import torch\n" + "x = 1\n" * 10**5, 1), "bytes, of at most"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_code_that_cannot_be_taken_gets_a_sentence(graded, name):
    files, words = UNUSABLE[name]
    result = graded(files)
    assert points(result) == (0, 10)
    assert words in result["Task 1"][1]


@pytest.mark.parametrize("banner", ["######## TODO ({}) solved ########", "### todo({}): my answer", "# TODO ({})"])
def test_a_banner_that_still_names_its_todo_costs_nothing(graded, banner):
    files = hand_in()
    for todo in TODOS:
        text = files[FILE_OF[todo]].decode()
        files[FILE_OF[todo]] = text.replace(f"######## TODO ({todo}) ########", banner.format(todo)).encode()
    result = graded(files)
    assert points(result) == (10, 10)
    assert result["Hand-in"][1].startswith("All items are there")


def test_marks_that_no_editor_shows_are_no_change(graded):
    files = {
        name: b"\xef\xbb\xbf" + content if name.endswith(".py") else content for name, content in hand_in().items()
    }
    result = graded(files)
    assert points(result) == (10, 10)
    assert result["Hand-in"][1].startswith("All items are there")


def test_only_the_banners_are_taken_and_other_changes_are_shown(graded):
    train_py = good_files()[f"{TASK_1}/train.py"].decode()
    cheat = f"open({str(ROOT / 'cheated')!r}, 'w')\n"
    files = changed_code("import torch\n", "import torch\ntorch.manual_seed(42)\n", 1)
    files |= {f"{TASK_1}/train.py": (cheat + train_py).encode(), f"{TASK_1}/my_solution.py": b"raise SystemExit(1)\n"}
    result = graded(files)
    assert points(result) == (10, 10)
    text = result["Hand-in"][1]
    assert "+torch.manual_seed(42)" in text and f"+{cheat.strip()}" in text
    assert "means a score of zero" in text and "the teacher decides" in text
    assert "my_solution.py is a file of the student's own" in text
    assert not (ROOT / "cheated").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The zip, the report, the LoRAs


def raw_zip(entries: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**hand_in(), **entries}.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(info, content)
    return file.getvalue()


def bomb() -> bytes:
    """A zip with a file of zeros that declares 10 GB of them."""
    data = raw_zip({"zeros": bytes(20_000_000)})
    start = data.rindex(b"PK\1\2", 0, data.rindex(b"zeros"))
    return data[: start + 24] + struct.pack("<L", 4_000_000_000) + data[start + 28 :]


BAD_ZIPS = {
    "10 GB of zeros": (bomb, "zeros"),
    "an empty zip": (lambda: b"PK\5\6" + bytes(18), "no item of the hand-in"),
    "nothing": (lambda: b"", "not a zip archive"),
    "not a zip": (lambda: b"Rar!" * 100, "not a zip archive"),
    "half a zip": (lambda: raw_zip({})[:-3000], "not a zip archive"),
    "a zip in a zip": (lambda: raw_zip({"more.zip": raw_zip({})}), "archive inside the hand-in"),
    "zip slip": (lambda: raw_zip({"../../tmp/cheated": b"x"}), "leads out of"),
    "an absolute path": (lambda: raw_zip({"/tmp/cheated": b"x"}), "absolute path"),
    "a link": (
        lambda: raw_zip({"lora_1/link": b"/etc/passwd"}, {"lora_1/link": stat.S_IFLNK | 0o777}), "is a link"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_a_zip_that_is_not_unpacked_gets_a_sentence(graded, tmp_path, name):
    make, words = BAD_ZIPS[name]
    (tmp_path / "bad.zip").write_bytes(make())
    result = graded(tmp_path / "bad.zip")
    assert points(result) == (0, 0)
    assert words in result["Hand-in"][1]
    assert not os.path.exists("/tmp/cheated")


def test_a_folder_without_permissions(graded, tmp_path):
    folder = write_folder(hand_in(), tmp_path / "submission")
    (folder / "lora_1").chmod(0)
    try:
        result = graded(folder)
    finally:
        (folder / "lora_1").chmod(0o755)
    assert points(result) == ((10, 10) if os.geteuid() == 0 else (0, 0))
    assert "Hand-in" in result


def test_a_link_in_a_folder(graded, tmp_path):
    folder = write_folder(hand_in(**{LORA_1: None}), tmp_path / "submission")
    (folder / LORA_1).parent.mkdir()
    (folder / LORA_1).symlink_to("/etc/passwd")
    assert "is a link" in reasons(graded(folder))


REPORTS = {
    "no PDF": (None, "The report is missing"),
    "an empty file": (b"", "is not a PDF"),
    "a corrupt PDF": (report()[:300] + bytes(300), "cannot be read as a PDF"),
    "another format": (b"\x89PNG\r\n\x1a\n", "is not a PDF"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_without_a_readable_report_everything_is_zero(graded, name):
    content, words = REPORTS[name]
    result = graded(hand_in(**{PDF: content}))
    assert points(result) == (0, 0)
    assert words in result["Hand-in"][1] and words in result["Task 1"][1] and words in result["Task 2"][1]


def test_a_report_of_three_pages_is_told(graded):
    result = graded(hand_in(**{PDF: report(pages=3)}))
    assert points(result) == (10, 10)
    assert "has 3 pages, of at most 2" in result["Hand-in"][1]


def poisoned() -> dict[str, np.ndarray]:
    tensors = lora_tensors(3)
    next(iter(tensors.values()))[0, 0] = np.nan
    return tensors


LORAS = {
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch /tmp/cheated'\ntR.", "is a pickle"),
    "a header bomb": (struct.pack("<Q", 2**60) + b'{"a":' + b"[" * 1000, "claims a header of"),
    "nested JSON": (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "header that is not JSON"),
    "a truncated file": (good_files()[LORA_1][:-1000], "'pytorch_lora_weights.safetensors'"),
    "an empty file": (b"", "no safetensors header"),
    "NaN": (save(poisoned()), "not finite"),
    "zeros": (save(lora_tensors(3, b=0.0)), "was never trained"),
    "the same twice": (good_files()[LORA_1], "has the same weights as lora_1"),
    "another model's": (save({"unet.a.lora_A.weight": np.ones((4, 4), np.float32)}), "lacks the matrix B"),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_bad_lora_costs_half_of_task_2(graded, name):
    content, words = LORAS[name]
    result = graded(hand_in(**{LORA_2: content}))
    assert points(result) == (10, 5)
    assert words in result["Task 2"][1]
    assert not os.path.exists("/tmp/cheated")


def test_a_missing_lora_is_a_missing_item(graded):
    result = graded(hand_in(**{LORA_2: None}))
    assert points(result) == (0, 0)
    assert "If any item is missing, the score is zero" in result["Hand-in"][1]
    assert "Without this rule it would be 10 points" in result["Task 1"][1]


# ---------------------------------------------------------------------------------------------------------------------
# Observations


FORGERIES = {
    "nothing": ("", "before there were any results"),
    "text": ("open(path, 'w').write('all passed')", "are no results"),
    "a pickle": ("import pickle; open(path, 'wb').write(pickle.dumps({'passed': True}))", "are no results"),
    "deep JSON": ("write(b'[' * 100000)", "are no results"),
    "a claim": ('write(b\'{"passed": true, "gradients_on": true}\')', "make no sense"),
    "other numbers": (
        'write(b\'{"convolutions": [{"is_module": true}], "gradients_on": true}\')', "make no sense"
    ),
    "a link": ("os.symlink('/etc/passwd', path)", "cannot be taken"),
    "a file of 10 GB": ("open(path, 'w').truncate(10**10 // 1000)", "cannot be taken"),
}  # fmt: skip
WRITER = f"""
import json, os
os.mkdir("{FOLDER}")
path = "{FOLDER}/1.safetensors"
def write(structure):
    header = {{"structure": {{"dtype": "U8", "shape": [len(structure)], "data_offsets": [0, len(structure)]}}}}
    header = json.dumps(header).encode()
    open(path, "wb").write(len(header).to_bytes(8, "little") + header + structure)
"""


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_observations_are_no_proof(name):
    script, words = FORGERIES[name]
    with Sandbox() as sandbox:
        outcome = sandbox.run(["/usr/bin/env", "python3", "-c", WRITER + script], Limits(seconds=20))
        assert outcome.succeeded, outcome
        (problem,) = judge_file(sandbox, "1", 7, outcome, max_bytes=1_000_000).problems
    assert problem.startswith("TODO (1): ") and words in problem


def test_what_stopped_the_observation_is_said():
    with Sandbox() as sandbox:
        outcome = Outcome(137, "it took longer than 60 s", "", 60.0, 0.0)
        (problem,) = judge_file(sandbox, "3", 7, outcome, max_bytes=1000).problems
    assert problem.startswith("TODO (3): ") and "was stopped, as it took longer than 60 s" in problem


@needs_root
def test_the_sandbox_holds_the_students_text_and_no_other(shared, tmp_path):
    parts = {**read_parts(ROOT / TASK_1), "1": "    module = MINE\n"}
    with Sandbox() as sandbox:
        task_1 = student_code.lay_out(sandbox.folder / "code", parts)
        assert read_parts(task_1) == parts
        names = {path.relative_to(sandbox.folder / "code").as_posix() for path in (sandbox.folder / "code").rglob("*")}
        assert "grading/checks/observe.py" in names and "task_1_controlnet/train.py" in names
        judges = {path.relative_to(ROOT).as_posix() for path in (ROOT / "grading/checks").glob("problems*.py")}
        assert judges and not {*judges, "grading/checks/run.py", "tests"} & names
        assert json.loads((task_1 / "data" / "test_prompts.json").read_text())
        outcome = sandbox.run(["cat", str(task_1 / "diffusion" / "controlnet.py")], Limits())
    assert "module = MINE" in outcome.tail or outcome.succeeded
