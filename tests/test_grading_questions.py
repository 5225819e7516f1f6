"""The questions drawn from a student id: the key is right by the library's models, and the page is whole and the same.

What is right is found here without our models: by running the library's ControlNet and UNet on the CPU, with numbers in
them, and by formulas.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from pypdf import PdfReader

from grading.banners import TODOS
from grading.gradescope import needed_files
from grading.questions import __main__ as program
from grading.questions import sheet as sheets
from grading.questions.drawing import TEXT_TOKENS, Configuration, Draw, draw_configuration
from grading.questions.sheet import (
    QUESTIONS,
    Asked,
    Sheet,
    ask,
    compute_answers,
    draw_sheet,
    write_answer,
)
from grading.questions.typeset import typeset
from grading.starter import write_starter

ROOT = Path(__file__).resolve().parent.parent
FIFTY = [str(20240000 + 137 * i) for i in range(50)]


def all_questions(student_id: str) -> Sheet:
    """A sheet with every question there is."""
    key = ("", student_id)
    configuration = draw_configuration(Draw(*key, "configuration"))
    return Sheet(student_id, configuration, tuple(ask(question, key, configuration) for question in QUESTIONS.values()))


# ---------------------------------------------------------------------------------------------------------------------
# What is right


def numbers_in(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


class Library:
    """The library's models of a configuration, and what was seen while one image went through them on the CPU."""

    def __init__(self, configuration: Configuration) -> None:
        self.c = c = configuration
        torch.manual_seed(1)
        self.unet = UNet2DConditionModel(**c.unet_fields())
        widths = {"conditioning_embedding_out_channels": c.condition_widths}
        self.controlnet = ControlNetModel.from_unet(self.unet, **widths)
        self.inputs = (torch.randn(1, 4, c.height, c.width), 3, torch.randn(1, TEXT_TOKENS, c.cross_attention_dim))
        with torch.inference_mode():
            self.look_at_controlnet()
            self.look_at_unet()
        self.parameters = {name: tuple(p.shape) for name, p in self.controlnet.named_parameters()}
        self.entries = {name: len(module.state_dict()) for name, module in self.unet.named_modules()}
        self.sizes = {name: numbers_in(module) for name, module in self.controlnet.named_modules()}
        self.strides = {n: m.stride[0] for n, m in self.controlnet.named_modules() if isinstance(m, torch.nn.Conv2d)}
        self.missing = len(set(self.controlnet.state_dict()) - set(self.unet.state_dict()))
        del self.unet, self.controlnet, self.inputs

    def batched(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As many images as the page has went through one by one."""
        return (self.c.batch, *shape[1:])

    def look_at_controlnet(self) -> None:
        made: dict[str, torch.Tensor] = {}
        given: list[torch.Tensor] = []
        for name, module in self.controlnet.named_modules():
            if re.fullmatch(r"controlnet_down_blocks\.\d+", name):
                module.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
            elif re.fullmatch(r"down_blocks\.\d\.(resnets|attentions|downsamplers)\.\d", name):
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: made.update(
                        {name: output[0] if isinstance(output, tuple) else output}
                    )
                )
        embedding = self.controlnet.controlnet_cond_embedding
        embedding.conv_out.register_forward_hook(lambda module, inputs, output: setattr(self, "embedded", inputs[0]))
        condition = torch.rand(1, 3, 8 * self.c.height, 8 * self.c.width)
        down, mid = self.controlnet(*self.inputs, condition, return_dict=False)
        self.down, self.mid = [tuple(tensor.shape) for tensor in down], tuple(mid.shape)
        self.sources = [next((n for n, out in made.items() if out is feature), None) for feature in given]
        self.unpadded = tuple(F.conv2d(self.embedded, embedding.conv_out.weight).shape[2:])
        convolutions = list(self.controlnet.controlnet_down_blocks)
        self.misfit = next(i for i, x in enumerate(given) if x.shape[1] != convolutions[i + 1].weight.shape[1])
        del self.embedded

    def look_at_unet(self) -> None:
        skips: list[torch.Tensor] = []
        layers: dict[tuple[int, int], torch.Tensor] = {}
        seen: dict[str, torch.Tensor] = {}
        self.unet.conv_in.register_forward_hook(lambda module, inputs, output: skips.append(output))
        for block in self.unet.down_blocks:
            block.register_forward_hook(lambda module, inputs, output: skips.extend(output[1]))
        for j, block in enumerate(self.unet.up_blocks):
            for k, resnet in enumerate(block.resnets):
                resnet.register_forward_hook(lambda m, inputs, out, place=(j, k): layers.update({place: inputs[0]}))
        self.unet.up_blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(up=output))
        middle = self.unet.mid_block
        middle.register_forward_hook(lambda module, inputs, output: seen.update(into=inputs[0], out=output))
        attention = middle.attentions[0].transformer_blocks[0].attn2
        attention.register_forward_hook(lambda module, inputs, output: seen.update(places=inputs[0]))
        self.unet(*self.inputs)
        self.skips = [tuple(skip.shape) for skip in skips]
        self.layers = {place: tuple(tensor.shape) for place, tensor in layers.items()}
        # By their values: the layer's input ends with the skip connection's channels.
        self.taken = {
            place: next(
                i for i, s in enumerate(skips) if s.shape[2:] == x.shape[2:] and torch.equal(x[:, -s.shape[1] :], s)
            )
            for place, x in layers.items()
        }
        self.before_mid = next(i for i, skip in enumerate(skips) if skip.equal(seen["into"]))
        self.mid_out, self.up_0 = tuple(seen["out"].shape), tuple(seen["up"].shape)
        self.places = seen["places"].shape[1]
        self.unfit = next(i for i, skip in enumerate(skips) if skip.shape != skips[i + 1].shape)


@lru_cache
def library(configuration: Configuration) -> Library:
    return Library(configuration)


@lru_cache
def first_steps(down_block_types: tuple[str, ...], layers: int) -> dict[str, int]:
    """When each parameter of the library's ControlNet first has a gradient, by training it."""
    torch.manual_seed(2)
    n = len(down_block_types)
    small = Configuration((8,) * n, down_block_types, layers, 6, (4,) * 4, 1, 2**n, 2**n)
    unet = UNet2DConditionModel(**{**small.unet_fields(), "norm_num_groups": 4, "attention_head_dim": 2})
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=small.condition_widths)
    unet.requires_grad_(False)
    inputs = (torch.randn(1, 4, 2**n, 2**n), 3, torch.randn(1, 5, 6))
    condition, steps = torch.rand(1, 3, 2 ** (n + 3), 2 ** (n + 3)), {}
    for step in (1, 2, 3, 4):
        down, mid = controlnet(*inputs, condition, return_dict=False)
        controlnet.zero_grad()
        unet(*inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample.sum().backward()
        with torch.no_grad():
            for name, parameter in controlnet.named_parameters():
                if parameter.grad is not None and parameter.grad.count_nonzero():
                    steps.setdefault(name, step)
                    parameter -= 0.1 * parameter.grad
    return steps


def convolution(it: dict[str, Any], **others: Any) -> torch.nn.Conv2d:
    kernel = {"kernel_size": it.get("kernel", 1), "padding": it.get("padding", 0), "stride": it.get("stride", 1)}
    return torch.nn.Conv2d(it["a"], it["b"], **{**kernel, **others})


def halved(side: int, times: int) -> int:
    for _ in range(times):
        side = -(-side // 2)
    return side


def keeping_padding(lib: Library, it: dict[str, Any]) -> int:
    image = torch.zeros(1, it["a"], 9, 9)
    return next(p for p in range(9) if convolution(it, padding=p)(image).shape[2:] == image.shape[2:])


def square(width: int) -> int:
    return width * width + width


def product(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


# By question: what is right, from the library's models and what was drawn.
RIGHT = {
    "zero_parameters": lambda lib, it: it["a"] * it["b"] + it["b"],
    "zero_kernel_parameters": lambda lib, it: it["kernel"] ** 2 * it["a"] * it["b"] + it["b"],
    "zero_output_shape": lambda lib, it: tuple(
        convolution(it)(torch.zeros(it["batch"], it["a"], it["height"], it["width"])).shape
    ),
    "zero_weight_shape": lambda lib, it: tuple(convolution(it).weight.shape),
    "zero_embedding_parameters": lambda lib, it: (9 * lib.c.condition_widths[-1] + 1) * lib.c.block_out_channels[0],
    "zero_number": lambda lib, it: len(lib.skips) + 2,
    "zero_padding": keeping_padding,
    "zero_forgotten_padding": lambda lib, it: lib.unpadded,
    "zero_first_gradients": lambda lib, it: [
        first_steps(lib.c.down_block_types, lib.c.layers_per_block)[name] for name in it["names"]
    ],
    "copy_conv_in_parameters": lambda lib, it: (4 * 9 + 1) * lib.c.block_out_channels[0],
    "copy_time_embedding_parameters": lambda lib, it: (
        (lib.c.block_out_channels[0] + 1 + 4 * lib.c.block_out_channels[0] + 1) * 4 * lib.c.block_out_channels[0]
    ),
    "copy_entries": lambda lib, it: [lib.entries[name] for name in it["names"]],
    "copy_resnet_entries": lambda lib, it: lib.entries[it["name"]],
    "copy_missing_keys": lambda lib, it: lib.missing,
    "copy_weight_shape": lambda lib, it: lib.parameters[it["name"] + ".conv1.weight"],
    "copy_attention_shape": lambda lib, it: lib.parameters[it["name"]],
    "copy_shared": lambda lib, it: lib.sizes[it["name"]],
    "copy_nothing_parameters": lambda lib, it: lib.sizes[f"controlnet_cond_embedding.{it['name']}"],
    "copy_downsampler_shape": lambda lib, it: [
        lib.parameters[it["name"] + ".conv.weight"],
        lib.strides[it["name"] + ".conv"],
    ],
    "features_number": lambda lib, it: len(lib.down),
    "features_shape": lambda lib, it: lib.batched(lib.down[it["i"]]),
    "features_weight_shape": lambda lib, it: (*2 * (lib.down[it["i"]][1],), 1, 1),
    "features_height_index": lambda lib, it: next(i for i, s in enumerate(lib.skips) if s[2] == it["height"]),
    "features_channels": lambda lib, it: [shape[1] for shape in lib.skips],
    "features_parameters": lambda lib, it: square(lib.skips[it["i"]][1]),
    "features_source": lambda lib, it: lib.sources[it["i"]],
    "features_downsampling_index": lambda lib, it: (it["block"] + 1) * (lib.c.layers_per_block + 1),
    "features_shifted": lambda lib, it: lib.misfit,
    "features_bytes": lambda lib, it: torch.zeros(lib.batched(lib.down[it["i"]]), dtype=torch.float16).nbytes,
    "features_guess_mode": lambda lib, it: 10 ** (it["i"] / len(lib.down) - 1) * it["scale"],
    "skips_number": lambda lib, it: [(it["layers"] + 1) * lib.c.num_blocks, len(lib.skips)],
    "skips_indices": lambda lib, it: [i for (j, k), i in sorted(lib.taken.items()) if j == it["j"]],
    "skips_concatenated": lambda lib, it: lib.layers[it["j"], it["k"]][1],
    "skips_taken_by": lambda lib, it: next(
        f"up_blocks.{j}.resnets.{k}" for (j, k), i in lib.taken.items() if i == it["i"]
    ),
    "skips_in_place": lambda lib, it: [lib.before_mid, lib.batched(lib.skips[-1])],
    "skips_shifted": lambda lib, it: lib.unfit,
    "skips_shape": lambda lib, it: lib.batched(lib.skips[it["i"]]),
    "mid_shape": lambda lib, it: lib.batched(lib.mid),
    "mid_image_shape": lambda lib, it: (
        it["batch"],
        lib.c.block_out_channels[-1],
        halved(it["height"] // 8, lib.c.num_blocks - 1),
        halved(it["width"] // 8, lib.c.num_blocks - 1),
    ),
    "mid_concatenated": lambda lib, it: lib.layers[0, 0][1],
    "mid_parameters": lambda lib, it: square(lib.mid_out[1]),
    "mid_sums": lambda lib, it: lib.c.batch * product(lib.mid_out),
    "mid_attention": lambda lib, it: [lib.places, lib.c.cross_attention_dim],
    "mid_added_shape": lambda lib, it: (lib.c.batch, it["channels"], *(halved(side, 1) for side in lib.mid[2:])),
    "mid_bytes": lambda lib, it: torch.zeros(lib.batched(lib.mid)).nbytes,
    "mid_decoder_shape": lambda lib, it: lib.batched(lib.up_0),
}


@pytest.fixture(scope="module")
def fifty() -> list[tuple[Sheet, list[str]]]:
    """Every question of fifty ids, with the key's answers."""
    every = [all_questions(student_id) for student_id in FIFTY]
    return list(zip(every, compute_answers(every)))


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_key_is_right_for_fifty_ids(name, fifty):
    for sheet, answers in fifty:
        (at,) = (i for i, one in enumerate(sheet.asked) if one.question.name == name)
        right = RIGHT[name](library(sheet.configuration), sheet.asked[at].drawn)
        assert answers[at] == write_answer(right), (sheet.student_id, sheet.asked[at].text)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked

SOME = [str(20250000 + 31 * i) for i in range(300)]


def content(sheet: Sheet) -> tuple[Any, ...]:
    return (sheet.configuration, *(one.text for one in sheet.asked))


def test_there_are_enough_questions_on_each_place():
    assert len(QUESTIONS) >= 30 and QUESTIONS.keys() == RIGHT.keys()
    assert f"six of {len(QUESTIONS)} questions" in (ROOT / "docs" / "teacher.md").read_text(encoding="utf-8")
    for todo in TODOS:
        assert sum(question.place == todo for question in QUESTIONS.values()) >= 6


def test_each_page_asks_six_questions_on_all_five_places():
    asked, twice = set(), set()
    for student_id in SOME:
        sheet = draw_sheet(student_id)
        places = [one.question.place for one in sheet.asked]
        assert len(places) == 6 and set(places) == set(TODOS) and places == sorted(places)
        twice.add(next(place for place in places if places.count(place) == 2))
        assert len({one.question.kind for one in sheet.asked}) == 6, "no two questions ask for the same thing"
        asked.update(one.question.name for one in sheet.asked)
    assert twice == set(TODOS), "the sixth question is on any place"
    assert asked == QUESTIONS.keys(), "no question is never asked"


def test_the_same_id_has_the_same_page_and_no_two_ids_have():
    pages = [content(draw_sheet(student_id)) for student_id in SOME]
    assert pages == [content(draw_sheet(student_id)) for student_id in SOME]
    assert len(set(pages)) == len(SOME)
    assert len({page[0] for page in pages}) > 0.98 * len(SOME), "also the configurations differ"
    salted = [content(draw_sheet(student_id, "2026-fall")) for student_id in SOME]
    assert not set(pages) & set(salted) and len(set(salted)) == len(SOME)


def test_the_numbers_differ_between_ids():
    for question in QUESTIONS.values():
        answers = set()
        for sheet in map(all_questions, FIFTY[:12]):
            (one,) = (one for one in sheet.asked if one.question is question)
            answers.add((one.text, sheet.configuration))
        assert len(answers) == 12, question.name


def test_nothing_is_left_open_in_a_text():
    for sheet in map(all_questions, SOME[:20]):
        for one in sheet.asked:
            assert one.text.count("`") % 2 == 0 and not re.search(r"[{}]|\s\s|None", one.text), one.text
            assert one.text.endswith(("?", ".")) and one.question.why.endswith(".")


@pytest.mark.parametrize(
    "answer, text",
    [
        (12345, "12,345"),
        (0.37947, "0.379"),
        ((2, 1280, 8, 8), "(2, 1280, 8, 8)"),
        ([5, 4, 3], "5, 4, 3"),
        ([7, (2, 64, 4, 4)], "7; (2, 64, 4, 4)"),
        ("down_blocks.0.attentions.1", "down_blocks.0.attentions.1"),
    ],
)
def test_answers_as_one_writes_them(answer, text):
    assert write_answer(answer) == text


# ---------------------------------------------------------------------------------------------------------------------
# The page


def squeezed(text: str) -> str:
    """Without what lines and words are broken by."""
    return re.sub(r"[\s\u200b`]", "", text)


def read(pdf: bytes) -> str:
    (page,) = PdfReader(BytesIO(pdf)).pages
    return squeezed(page.extract_text())


@pytest.fixture(scope="module")
def answered() -> list[tuple[Sheet, list[str]]]:
    three = [draw_sheet(student_id) for student_id in SOME[:3]]
    return list(zip(three, compute_answers(three)))


def test_the_page_shows_all_and_no_answer(answered):
    for sheet, answers in answered:
        page, key = read(typeset(sheet)), read(typeset(sheet, answers))
        for one, answer in zip(sheet.asked, answers):
            for text in (page, key):
                assert squeezed(one.text) in text
                assert sheet.student_id in text and squeezed(str(sheet.configuration.block_out_channels)) in text
            assert squeezed(answer + one.question.why) in key and squeezed(one.question.why) not in page
        assert page.count("TODO(") >= 6 and "Name" in page and "Notforstudents" in key


def test_the_longest_questions_fit_on_one_page():
    configuration = replace(
        draw_configuration(Draw("", "20240000", "configuration")),
        block_out_channels=(64, 112, 160, 208),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    )
    asked = [ask(question, ("", "20240000"), configuration) for question in QUESTIONS.values()]
    longest: list[Asked] = sorted(asked, key=lambda one: len(one.text) + len(one.question.why))[-6:]
    sheet = Sheet("20240000", configuration, tuple(longest))
    for answers in (None, [", ".join(["208"] * 16)] * 6):
        text = read(typeset(sheet, answers))
        assert all(squeezed(one.text) in text for one in longest)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "grading.questions", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_program_writes_the_same_bytes_again(tmp_path):
    ids = ["--student-id", "20241234", "20245678"]
    for seed in ("1", "2"):
        ended = run(tmp_path, *ids, "--output", seed, "--answers", PYTHONHASHSEED=seed)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.split() == [f"{seed}/{i}{end}.pdf" for i in ids[1:] for end in ("", "-answers")]
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["20241234-answers.pdf", "20241234.pdf", "20245678-answers.pdf", "20245678.pdf"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    ended = run(tmp_path, "--student-id", "20241234")
    assert ended.returncode == 0 and ended.stdout == "build/questions/20241234.pdf\n"
    assert [path.name for path in (tmp_path / "build" / "questions").iterdir()] == ["20241234.pdf"]
    without_key = (tmp_path / "build" / "questions" / "20241234.pdf").read_bytes()
    assert without_key == (tmp_path / "1" / "20241234.pdf").read_bytes()
    ended = run(tmp_path, "--student-id", "20241234", "--salt", "a word")
    assert (tmp_path / "build" / "questions" / "20241234.pdf").read_bytes() != without_key


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["questions", *arguments])
    program.main()


@pytest.mark.parametrize("wrong", ["2024123", "202412345", "abcdefgh", "../20241234", "", "２０２４１２３４"])
def test_a_wrong_id_is_refused_before_anything_is_written(wrong, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--student-id", "20241234", wrong, "--output", str(tmp_path / "out"))
    assert str(caught.value) == f"Error: The student id {wrong!r} must be eight digits, such as 20241234."
    assert not (tmp_path / "out").exists()


def test_without_typst_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(SystemExit, match="Error: The package typst, which makes the PDF, .*: pip install typst"):
        call(monkeypatch, "--student-id", "20241234", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^Error: .*file is a file: choose another folder with --output\.$"):
        call(monkeypatch, "--student-id", "20241234", "--output", str(tmp_path / "file"))


def test_interrupted_it_says_how_far_it_came_and_leaves_no_process(tmp_path, monkeypatch):
    def stop(sheet: Sheet, *answers: Any) -> bytes:
        if sheet.student_id == "20245678":
            raise KeyboardInterrupt
        return typeset(sheet, *answers)

    started: list[subprocess.Popen] = []
    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(original(*args, **kw)) or started[-1])
    monkeypatch.setattr(program, "typeset", stop)
    with pytest.raises(SystemExit, match="Stopped: the pages of 1 of 2 students are written"):
        call(monkeypatch, "--student-id", "20241234", "20245678", "--answers", "--output", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20241234-answers.pdf", "20241234.pdf"]
    assert [process.poll() is not None for process in started] == [True]


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "starter"
    write_starter(folder)
    return folder


def test_without_the_solution_there_is_no_key(starter, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "TASK_1", starter / "task_1_controlnet")
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--student-id", "20241234", "--answers", "--output", str(tmp_path / "out"))
    message = str(caught.value)
    assert message.startswith("Error: The answers cannot be computed with the models in task_1_controlnet/: ")
    assert "NotImplementedError: TODO (1)" in message and message.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_students_do_not_get_the_questions(starter):
    given = [path for path in starter.rglob("*") if path.is_file()]
    assert not [path for path in given if "questions" in path.relative_to(starter).as_posix()]
    texts = [one.question.text[:40] for one in all_questions("20240000").asked]
    for path in given:
        if path.suffix in (".py", ".md", ".ipynb", ".typ", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert not [one for one in texts if one in text], path
    assert not [name for name in needed_files() if "questions" in name.as_posix()]


def test_this_process_imports_no_task_code():
    code = "import sys, grading.questions.__main__\nprint([n for n in sys.modules if n.split('.')[0] in %r])"
    forbidden = ("torch", "diffusion", "diffusers")
    command = [sys.executable, "-c", code % (forbidden,)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert json.loads(ended.stdout.replace("'", '"')) == [], ended.stdout + ended.stderr
