"""Packing a hand-in: what is wrong is said, with what to do about it; what is right becomes a zip that runs alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, StreamObject
from safetensors.numpy import save_file

from grading.files import report_pdf
from grading.files.lora_modules import known_bases
from grading.files.report_pdf import inspect_report, read_report
from grading.hand_in import pack as hand_in
from grading.hand_in.sources import Line
from grading.handed_out.banners import TODO_FILES, find_places
from grading.handed_out.record import current_code, diff, read_handed_out
from processes import FORKS, run_python

ROOT = Path(__file__).resolve().parents[3]
TASK_1 = "task_1_controlnet"
WEIGHTS = "pytorch_lora_weights.safetensors"
ZIP = "20241234_Gildong_Hong.zip"
FORKED_CHECKS = ROOT / "tests" / "grading" / "support" / "forked_checks.py"
WHO = ("--student-id", "20241234", "--name", "Gildong_Hong")


def write_report(path: Path, pages: int = 2) -> None:
    picture = Image.effect_noise((80, 60), 50)
    picture.save(path, "PDF", save_all=True, append_images=[picture] * (pages - 1))


def write_lora(path: Path, seed: int, b: float = 1.0) -> None:
    source = np.random.default_rng(seed)
    tensors = {}
    for module, shape in known_bases()[1].shapes["unet"].items():
        if ".attn" in module:
            tensors[f"unet.{module}.lora_A.weight"] = source.normal(size=(4, shape[1])).astype(np.float32)
            tensors[f"unet.{module}.lora_B.weight"] = b * source.normal(size=(shape[0], 4)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def copy_code(folder: Path) -> None:
    """What a student has of this repository, as far as the program needs it."""
    ignored = shutil.ignore_patterns("__pycache__", "runs", ".*")
    for name in (TASK_1, "finetune", "grading"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    configs = ("tiny_sd/unet/config.json", "tiny_sd/text_encoder/config.json")
    for name in ("requirements.txt", "task_2_lora/lora/layouts.py", *configs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def add_work(folder: Path) -> None:
    """What a student and the trainings leave behind."""
    for name in ("__pycache__/x.pyc", "runs/log.txt", "diffusion/old.safetensors", ".cache/x", "data/fill50k.zip"):
        path = folder / TASK_1 / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(folder / TASK_1 / "data" / "own.png")
    (folder / TASK_1 / "my_data.py").write_text("print('for Task 1-1')\n")
    write_lora(folder / "runs" / "lora-custom" / WEIGHTS, seed=1)
    write_lora(folder / "runs" / "dreambooth-dog" / WEIGHTS, seed=2)
    write_report(folder / "20241234.pdf")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """A finished repository with its zip in it, and what the program printed: the real one, with the real checks."""
    folder = tmp_path_factory.mktemp("made")
    copy_code(folder)

    def run(*command: str | Path) -> str:
        done = run_python(*command, folder=folder, environment={"PYTHONPATH": "", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "grading.handed_out")
    add_work(folder)
    hand_in_program = [FORKED_CHECKS] if FORKS else ["-m", "grading.hand_in"]
    return folder, run(*hand_in_program, *WHO)


@lru_cache(maxsize=None)
def inspect_content(name: str, content: bytes) -> report_pdf.PdfReport:
    """Each report is read once, in another process as always, and not again for every hand-in that has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return inspect_report(path)


@pytest.fixture
def repository(made, tmp_path, monkeypatch) -> Path:
    """A finished repository that may be spoilt, as the current folder; the checks of the TODO places are left out."""
    folder = tmp_path / "repository"
    shutil.copytree(made[0], folder)
    (folder / ZIP).unlink()
    monkeypatch.chdir(folder)
    handed_out = read_handed_out(folder / "grading" / "handed_out" / "handed_out.json.gz")
    monkeypatch.setattr(hand_in, "read_handed_out", lambda: handed_out)
    monkeypatch.setattr(hand_in, "check_todos", lambda task_1: Line("right", "TODO places", "left out"))
    monkeypatch.setattr(hand_in, "inspect_report", lambda path: inspect_content(path.name, path.read_bytes()))
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls the program, and returns its exit status and what it printed."""

    def call_program(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hand_in", *flags])
        with pytest.raises(SystemExit) as stopped:
            hand_in.main()
        output = capsys.readouterr()
        return int(stopped.value.code), output.out + output.err

    return call_program


def assert_refused(call, wrong: str, *flags: str) -> str:
    status, output = call(*WHO, *flags)
    assert status == 1, output
    assert any(line.startswith("WRONG") and wrong in line for line in output.splitlines()), output
    assert f"{ZIP} is not written" in output and not list(Path(".").glob("*.zip"))
    return output


# ---------------------------------------------------------------------------------------------------------------------
# The zip


def test_the_zip_has_what_the_assignment_asks_for_and_nothing_else(made):
    folder, output = made
    with zipfile.ZipFile(folder / ZIP) as archive:
        names = archive.namelist()
        assert archive.read("lora_2/" + WEIGHTS) == (folder / "runs" / "dreambooth-dog" / WEIGHTS).read_bytes()
        assert archive.read("20241234.pdf") == (folder / "20241234.pdf").read_bytes()
        requirements = archive.read(f"{TASK_1}/requirements.txt").decode().splitlines()
    assert {name.split("/")[0] for name in names} == {"20241234.pdf", TASK_1, "lora_1", "lora_2"}
    code = {name[len(TASK_1) + 1 :] for name in names if name.startswith(TASK_1)}
    unwanted = ("__pycache__", ".cache", "runs", "old.safetensors", "fill50k.zip")
    there = {path.relative_to(folder / TASK_1) for path in (folder / TASK_1).rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in there if not set(unwanted).intersection(path.parts)}
    paths = [path for path in (ROOT / "finetune").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    finetune = {path.relative_to(ROOT).as_posix() for path in paths}
    assert "finetune/model/single_file_data/configurations.json" in finetune, "without it no base in one file is read"
    assert code == wanted | finetune | {"requirements.txt"}
    assert {"train.py", "train.sh", "inference.ipynb", "data/test_prompts.json", "data/own.png", "my_data.py"} < code
    assert "numpy" in requirements and not any(line.startswith("-e") for line in requirements)
    assert "right  TODO places: The checks of all five pass." in output
    assert "note   code: Your own files are handed in too: my_data.py." in output
    assert f"Left out of {TASK_1}/: .cache, data/fill50k.zip, diffusion/old.safetensors, runs." in output
    assert not list(folder.glob(f".{ZIP[:8]}*"))


def test_the_same_input_gives_the_same_bytes(made, repository, call):
    for path in repository.rglob("*"):
        os.utime(path, (1e9, 1e9))
    status, output = call(*WHO, "--output", "out")
    assert status == 0, output
    assert (repository / "out" / ZIP).read_bytes() == (made[0] / ZIP).read_bytes()


HIDE_THE_REPOSITORY = """
import atexit, os, runpy, sys
root = {root!r}
sys.path[:] = [path for path in sys.path[1:] if os.path.realpath(path or ".") != root]
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
atexit.register(lambda: "finetune" in sys.modules and print("finetune is", list(sys.modules["finetune"].__path__)))
sys.argv = sys.argv[1:]
if sys.argv[0] == "nothing":
    import finetune
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_task_1_trains_from_the_zip_alone(made, tmp_path):
    """In an environment without the repository's `finetune`."""
    program = tmp_path / "site" / "alone.py"
    program.parent.mkdir()
    program.write_text(HIDE_THE_REPOSITORY.format(root=str(ROOT)))
    environment = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    alone = run_python(program, "nothing", folder=tmp_path, environment=environment)
    assert "No module named 'finetune'" in alone.stderr

    with zipfile.ZipFile(made[0] / ZIP) as archive:
        archive.extractall(tmp_path / "empty")
    folder = tmp_path / "empty" / TASK_1
    command = [
        "train.py", "--pretrained_model_name_or_path", str(ROOT / "tiny_sd"),
        "--dataset_name", "rendered", "--max_train_samples", "4", "--resolution", "64",
        "--conditioning_channels", "8", "8", "8", "8",
        "--train_batch_size", "2", "--gradient_accumulation_steps", "1", "--max_train_steps", "1",
        "--validation_steps", "0", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    run = run_python(program, *command, folder=folder, environment=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"finetune is ['{folder / 'finetune'}']" in run.stdout
    assert (tmp_path / "run" / "controlnet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_zip_that_the_grader_would_refuse_does_not_replace_an_older_one(repository, call):
    (repository / ZIP).write_bytes(b"an older one")
    with (repository / TASK_1 / "data" / "film.raw").open("wb") as file:
        file.truncate(51_000_000)
    status, output = call(*WHO)
    assert status == 1 and "WRONG  zip: 'task_1_controlnet/data/film.raw'" in output and "leave it out" in output
    assert (repository / ZIP).read_bytes() == b"an older one"
    assert not [path for path in repository.glob(".*") if path.is_dir()]


# ---------------------------------------------------------------------------------------------------------------------
# Missing items


def test_in_an_empty_folder_it_says_how_to_get_everything(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    output = assert_refused(call, "There is no folder task_1_controlnet: start this in the repository's root")
    assert (
        "WRONG  lora_1: The LoRA of Task 2-1 is missing: train it (`cd task_2_lora && sh scripts/train_lora_cu"
        in output
    )
    assert (
        "WRONG  lora_2: The LoRA of Task 2-2 is missing: train it (`cd task_2_lora && sh scripts/train_dreamb" in output
    )
    assert "WRONG  report: There is no 20241234.pdf here or in runs/: make it with `python -m grading.report`" in output
    assert "right" not in output


def test_wrong_options_are_named(repository, call):
    assert_refused(call, "There is no file nowhere.pdf: correct --report.", "--report", "nowhere.pdf")
    assert_refused(call, f"There is no file runs/{WEIGHTS}: correct --lora-2.", "--lora-2", "runs")
    assert_refused(call, "name yours with --task-1", "--task-1", "nowhere")


def test_a_zip_that_cannot_be_written_is_a_sentence(repository, monkeypatch):
    (repository / "file").touch()
    monkeypatch.setattr("sys.argv", ["hand_in", *WHO, "--output", "file/folder"])
    with pytest.raises(SystemExit, match="^Error: .*file") as stopped:
        hand_in.main()
    assert stopped.value.code != 0


def test_several_trainings_must_be_chosen_from(repository, call):
    write_lora(repository / "runs" / "dreambooth-cat2" / WEIGHTS, seed=3)
    output = assert_refused(
        call, "several LoRAs of Task 2-2 (runs/dreambooth-cat2, runs/dreambooth-dog): choose one with"
    )
    assert "right  lora_1" in output
    assert call(*WHO, "--lora-2", "runs/dreambooth-dog")[0] == 0
    assert call(*WHO, "--lora-2", f"runs/dreambooth-dog/{WEIGHTS}", "--report", "20241234.pdf")[0] == 0
    (repository / "runs" / "lora-custom").rename("runs/lora-naruto")
    (repository / "20241234.pdf").rename("runs/20241234.pdf")
    status, output = call(*WHO, "--lora-2", "runs/dreambooth-dog")
    assert status == 0 and f"lora_1: found at runs/lora-naruto/{WEIGHTS}" in output


def test_a_lora_of_an_earlier_training_is_not_packed(repository, call):
    """A training in its folder goes on: what lies there is what another one left."""
    run = {"finished": None, "result": None, "settings": {"data": {"words": "4 samples of cats", "identity": "4"}}}
    file = repository / "runs" / "lora-custom" / "run.json"
    file.write_text(json.dumps(run))
    assert_refused(call, "is not by the training in runs/lora-custom, which is not finished: start that again")
    assert_refused(call, "or name another LoRA with --lora-1", "--lora-1", "runs/lora-custom")
    (repository / "runs" / "lora-older").mkdir()
    shutil.move(file.parent / WEIGHTS, repository / "runs" / "lora-older" / WEIGHTS)
    assert_refused(call, "The training in runs/lora-custom is not finished: start it again")
    shutil.move(repository / "runs" / "lora-older" / WEIGHTS, file.parent / WEIGHTS)
    file.write_text(json.dumps({**run, "finished": 500, "result": WEIGHTS}))
    status, output = call(*WHO)
    assert status == 0 and f"lora-custom/{WEIGHTS}, trained for 500 steps on 4 samples of cats." in output
    shutil.move(repository / "20241234.pdf", file.parent / "20241234.pdf")
    status, output = call(*WHO, "--report", "runs/lora-custom/20241234.pdf")
    assert status == 0 and "report: found at runs/lora-custom/20241234.pdf.\n" in output, "no report is trained"


@pytest.mark.parametrize("content", ['{"artifacts": [], "status": "COMPLETED"}', "[1, 2]", "{"])
def test_a_lora_beside_another_program_s_run_json_is_packed(repository, call, content):
    (repository / "runs" / "lora-custom" / "run.json").write_text(content)
    status, output = call(*WHO)
    assert status == 0 and f"lora_1: found at runs/lora-custom/{WEIGHTS}" in output


@pytest.mark.parametrize(
    "student_id, name, message",
    [
        ("2024XXXX", "Hong", "'2024XXXX' must be eight digits that begin with 20, such as 20241234"),
        ("2024123", "Hong", "must be eight digits"),
        ("19991234", "Hong", "that begin with 20"),
        ("20241234", "Gildong Hong", "write Gildong_Hong for Gildong Hong"),
        ("20241234", "홍길동", "other scripts in Latin letters"),
        ("20241234", "../x", "must be letters from a to z"),
        ("20241234", "", "are needed, as in --student-id 20241234 --name Gildong_Hong"),
    ],
)
def test_ids_and_names_that_cannot_name_a_zip(call, student_id, name, message):
    status, output = call("--student-id", student_id, "--name", name)
    assert status == 2 and message in output


# ---------------------------------------------------------------------------------------------------------------------
# The LoRAs and the checks of the TODO places


def test_loras_must_be_trained_and_two(repository, call):
    write_lora(repository / "runs" / "lora-custom" / WEIGHTS, seed=2)
    assert_refused(call, "lora_2: It has the same weights as lora_1: hand in two different LoRAs.")
    write_lora(repository / "runs" / "lora-custom" / WEIGHTS, seed=1, b=0.0)
    assert_refused(call, "lora_1: 'pytorch_lora_weights.safetensors' was never trained")


def write_program(root: Path, name: str, text: str) -> None:
    """A package `grading` with nothing but one program, which stands in for ours."""
    (root / "grading").mkdir()
    (root / "grading" / "__init__.py").touch()
    (root / "grading" / name).parent.mkdir(exist_ok=True)
    (root / "grading" / name).write_text(text)


@pytest.mark.parametrize(
    "checks, message",
    [
        (
            "import sys; print('WRONG  TODO (3)', sys.argv[1:]); sys.exit(1)",
            "Their checks find mistakes: correct them.",
        ),
        ("raise MemoryError('x')", "Their checks find mistakes"),
        ("while True: pass", "do not end in 1 seconds of computing: look for a loop"),
        ("import time; time.sleep(60)", "do not end in 9 seconds: look for what waits, or try when less runs"),
    ],
)
def test_what_the_checks_find_is_shown(tmp_path, monkeypatch, checks, message):
    write_program(tmp_path, "checks/__main__.py", checks)
    monkeypatch.setattr(hand_in, "ROOT", tmp_path)
    monkeypatch.setattr(hand_in, "CHECKS_SECONDS", 1)
    monkeypatch.setattr(hand_in, "MAX_WAIT_SECONDS", 9 if "sleep" in checks else 500)
    line = hand_in.check_todos(Path("folder"))
    assert line.mark == "WRONG" and message in line.text
    if "TODO" in checks:
        assert f"WRONG  TODO (3) ['--task-1', '{Path('folder').resolve()}']" in line.details
    if "Memory" in checks:
        assert "MemoryError: x" in line.details


# ---------------------------------------------------------------------------------------------------------------------
# What may be changed


def test_what_is_handed_out_is_up_to_date():
    """After a change of the code: `python -m grading.handed_out`."""
    code = current_code()
    assert read_handed_out() == code
    assert {f"{TASK_1}/train.py", f"{TASK_1}/train.sh", "finetune/training_loop.py"} < code.keys()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert text.count(old) >= 1, old
    path.write_bytes(text.replace(old, new).encode())


def test_changes_outside_the_places_are_shown(repository, call):
    edit(repository / TASK_1 / "train.py", "learning_rate=1e-5,", "learning_rate=1e-4,")
    output = assert_refused(call, "task_1_controlnet/train.py is changed outside the TODO places: undo the change")
    assert "         -        learning_rate=1e-5," in output and "         +        learning_rate=1e-4," in output
    assert "@@" in output and output.count("WRONG") == 2


@pytest.mark.parametrize(
    "old, new, shown",
    [
        ("import math", "import\u00a0math", r"+import\xa0math"),
        ("import math", "\u200bimport math", r"+\u200bimport math"),
        ("import math", "import m\u0430th", r"+import m\u0430th"),
        ("import math\n", "import math\f\x1cx = 1\n", r"+import math\x0c\x1cx = 1"),
        ("import math", "import math  # 수학", "+import math  # 수학"),
    ],
)
def test_changes_that_nobody_sees_are_spelled_out(old, new, shown):
    before = "from x import y\nimport math\n"
    lines = diff(before, before.replace(old, new)).splitlines()
    assert shown in lines and "-import math" in lines


@pytest.mark.parametrize("name", TODO_FILES)
def test_code_beside_a_place_is_not_in_it(repository, call, name):
    path = repository / TASK_1 / name
    text = path.read_text()
    banner = next(iter(find_places(text).values())).opening
    path.write_text(text[: banner.start] + f"{banner.indent}evil = 1\n" + text[banner.start :])
    output = assert_refused(call, f"{TASK_1}/{name} is changed outside the TODO places")
    assert "evil = 1" in output


def test_banners_of_ones_own_make_no_place(repository, call):
    banner = "    ######## TODO (9) ########\n"
    edit(repository / TASK_1 / "train.py", "    args = parse_args()\n", f"{banner}    args = None\n{banner}")
    assert_refused(call, "task_1_controlnet/train.py is changed outside the TODO places")


@pytest.mark.parametrize("text, words", [
    (f"    # {'x' * 1000}\n", "has a line of 1,006 characters, of at most 1,000"),
    (200 * f"    # {'x' * 100}\n", "The text of TODO (1) has 2"),
])  # fmt: skip
def test_what_the_grader_would_not_read_is_said_before(repository, call, text, words):
    opening = "    ######## TODO (1) ########\n"
    path = repository / TASK_1 / "diffusion" / "controlnet.py"
    path.write_text(path.read_text().replace(opening, opening + text, 1))
    assert_refused(call, words)


def test_damaged_files_are_named(repository, call):
    banner, damaged = "######## TODO (2) ########", "######## TODO 2"
    edit(repository / TASK_1 / "diffusion" / "controlnet.py", banner, damaged)
    lines = (repository / TASK_1 / "diffusion" / "controlnet.py").read_text().splitlines()
    line = 1 + next(index for index, text in enumerate(lines) if text.strip() == damaged)
    (repository / TASK_1 / "metrics.py").unlink()
    (repository / TASK_1 / "examples.py").write_bytes(b"\xff\xfe")
    (repository / TASK_1 / "fill50k.py").write_text("x = 1\n" * 100_000)
    wrong = f"controlnet.py: The two banner lines of TODO (2) are missing (line {line} looks like a damaged banner"
    output = assert_refused(call, wrong)
    assert "metrics.py is missing: copy it from what was handed out" in output
    assert "code: task_1_controlnet/examples.py is not UTF-8 text: store it as UTF-8 in your editor." in output
    assert "fill50k.py is changed" in output and "(it has 100000 lines in place of" in output


@pytest.mark.parametrize("start, end", [("", " \r\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n"), ("", "\r"), ("", "\f\n")])
def test_what_may_change_may_change(repository, call, start, end):
    folder = repository / TASK_1
    for name in TODO_FILES:  # what a student may write, and what editors leave behind that nobody sees
        text = (folder / name).read_text()
        place = next(iter(find_places(text).values()))
        text = text[: place.start] + f"{place.indent}answer = 42\n" + text[place.start :]
        (folder / name).write_bytes((start + text + " \n\n").replace("\n", end).encode())
    edit(folder / "diffusion" / "controlnet.py", "######## TODO (1) ########", "## todo(1): mine ##")
    (folder / "inference.ipynb").write_text("{}")
    (folder / "data" / "test_prompts.json").write_text("{}")
    status, output = call(*WHO)
    assert status == 0, output


# ---------------------------------------------------------------------------------------------------------------------
# A finished zip


@pytest.fixture
def unzipped(made, tmp_path) -> Path:
    with zipfile.ZipFile(made[0] / ZIP) as archive:
        archive.extractall(tmp_path / "unzipped")
    return tmp_path / "unzipped"


def zip_again(folder: Path, name: str = ZIP) -> str:
    return shutil.make_archive(str(folder.parent / name[: -len(".zip")]), "zip", folder)


def test_a_finished_zip_passes(made, repository, call):
    status, output = call("--check", str(made[0] / ZIP))
    assert status == 0 and "WRONG" not in output and "right  lora_2: A LoRA of rank 4 for tiny_sd" in output


def test_what_is_wrong_in_a_zip_is_said(repository, unzipped, call):
    (unzipped / "lora_2" / WEIGHTS).unlink()
    (unzipped / "notes.txt").write_text("")
    edit(unzipped / TASK_1 / "finetune" / "objective.py", "def ", "def  ")
    status, output = call("--check", zip_again(unzipped))
    assert status == 1
    assert f"WRONG  zip: The LoRA of Task 2-2 is missing: put {WEIGHTS}" in output
    assert "note   zip: notes.txt is no part of a hand-in" in output
    assert "WRONG  code: finetune/objective.py is changed" in output
    assert "right  lora_1" in output and "right  report" in output

    shutil.rmtree(unzipped / TASK_1 / "finetune")
    status, output = call("--check", zip_again(unzipped, "20249999_X.zip"))
    assert status == 1 and "finetune/ is missing, without which Task 1 does not run alone: pack it again" in output
    assert "WRONG  report: It must be named 20249999.pdf, not 20241234.pdf." in output


def test_zips_that_are_none_and_names_that_are_wrong(made, repository, tmp_path, call):
    (tmp_path / ZIP).write_bytes(b"Rar!")
    status, output = call("--check", str(tmp_path / ZIP))
    assert status == 1 and f"WRONG  zip: '{ZIP}' is not a zip archive" in output
    status, output = call("--check", str(tmp_path / "20241234_nowhere.zip"))
    assert status == 1 and "There is no file" in output
    shutil.copy(made[0] / ZIP, tmp_path / "Hong_20241234.zip")
    status, output = call("--check", str(tmp_path / "Hong_20241234.zip"))
    assert (
        status == 1
        and "WRONG  zip: Hong_20241234.zip is not named STUDENT-ID_NAME.zip. The student id 'Hong'" in output
    )


# ---------------------------------------------------------------------------------------------------------------------
# The report


def write_encrypted(path: Path, user: str = "secret", algorithm: str = "RC4-128") -> None:
    write_report(path)
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(user, "owner's", algorithm=algorithm)
    writer.write(path)


def write_blank(path: Path) -> None:
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(path)


def write_truncated(path: Path) -> None:
    write_report(path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: write_report(path, pages=3), "'r.pdf' has 3 pages, of at most 2: shorten it."),
        (write_encrypted, "'r.pdf' is encrypted: save it without a password."),
        (lambda path: write_encrypted(path, algorithm="AES-256"), "'r.pdf' is encrypted: save it without a password."),
        (write_blank, "'r.pdf' has nothing on its pages: export it as a PDF again."),
        (write_truncated, "'r.pdf' cannot be read as a PDF"),
        (lambda path: path.write_bytes(b"%PDF-1.7\n" + bytes(5000)), "'r.pdf' cannot be read as a PDF"),
    ],
)
def test_bad_reports_are_named(tmp_path, write, message):
    write(tmp_path / "r.pdf")
    report = read_report(tmp_path / "r.pdf")
    assert not report.ok and message in report.problem


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256"])
def test_an_owners_password_keeps_nobody_from_reading(tmp_path, algorithm):
    write_encrypted(tmp_path / "r.pdf", user="", algorithm=algorithm)
    assert PdfReader(tmp_path / "r.pdf").is_encrypted
    assert inspect_report(tmp_path / "r.pdf") == report_pdf.PdfReport(True, None, 2)


def test_what_is_no_report_is_said(tmp_path):
    path = tmp_path / "r.pdf"
    write_report(path, pages=2)
    assert inspect_report(path) == report_pdf.PdfReport(True, None, 2)
    path.write_bytes(b"PK\3\4 a Word file")
    assert "'r.pdf' is not a PDF: export it" in inspect_report(path).problem
    assert "cannot be read (No such file" in inspect_report(tmp_path / "nowhere.pdf").problem
    with path.open("wb") as file:
        file.write(b"%PDF-1.7")
        file.truncate(21_000_000)
    assert "has 21 MB, of at most 20" in inspect_report(path).problem


@pytest.fixture
def bad_reader(tmp_path, monkeypatch):
    """Puts another program in the reader's place, and returns a report."""

    def replace_reader(program: str) -> Path:
        write_program(tmp_path, "files/report_pdf.py", program)
        write_report(tmp_path / "r.pdf")
        monkeypatch.setattr(report_pdf, "ROOT", tmp_path)
        return tmp_path / "r.pdf"

    return replace_reader


LOOP = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass"


@pytest.mark.parametrize("program", [LOOP, "import os; os._exit(0)", "print('[]' * 10)"])
def test_a_reader_that_is_brought_down_is_survived(bad_reader, program):
    assert "'r.pdf' cannot be read with 20 seconds and 2000 MB" in inspect_report(bad_reader(program)).problem


def test_a_busy_machine_is_no_fault_of_the_report(bad_reader, monkeypatch):
    """What counts is the time that the reader computes; that it gets none is what a sleep stands for."""
    path = bad_reader("import time; time.sleep(60)")
    monkeypatch.setattr(report_pdf, "MAX_WAIT_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="This machine is too busy: reading 'r.pdf'"):
        inspect_report(path)
    line = hand_in.check_report(path)
    assert line.mark == "WRONG" and "too busy" in line.text


def test_a_page_that_unpacks_to_all_the_memory_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "r.pdf"
    writer = PdfWriter()
    page = writer.add_blank_page(10, 10)
    bomb = StreamObject()
    bomb._data = zlib.compress(b"q Q " * 15_000_000)
    bomb[NameObject("/Filter")] = NameObject("/FlateDecode")
    page[NameObject("/Contents")] = writer._add_object(bomb)
    writer.write(path)
    assert inspect_report(path).ok and path.stat().st_size < 100_000
    monkeypatch.setattr(report_pdf, "MAX_MEMORY", 150_000_000)
    report = inspect_report(path)
    assert not report.ok and "'r.pdf' cannot be read as a PDF ('MemoryError" in report.problem


def test_a_report_with_endless_pages_is_given_up(tmp_path):
    """Each node of the tree of pages has the next one twice: 2 to the power of 40 pages in a few kilobytes."""
    writer = PdfWriter()
    child = writer.add_blank_page(10, 10).indirect_reference
    for _ in range(40):
        kids = ArrayObject([child, child])
        node = {"/Type": NameObject("/Pages"), "/Kids": kids, "/Count": NumberObject(2)}
        child = writer._add_object(DictionaryObject({NameObject(key): value for key, value in node.items()}))
    writer.root_object[NameObject("/Pages")] = child
    writer.write(tmp_path / "r.pdf")
    assert (tmp_path / "r.pdf").stat().st_size < 10_000
    report = inspect_report(tmp_path / "r.pdf")
    assert not report.ok and "'r.pdf' cannot be read" in report.problem
