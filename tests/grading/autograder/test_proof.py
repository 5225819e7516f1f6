"""The proof in place of the run: which texts may be proved, what counts as equal, and that nobody can use it."""

from __future__ import annotations

import json
import os
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grading.autograder.alignment import WEIGHTS
from grading.autograder.earlier_results import grader_key
from grading.autograder.grade import quick_judges, real_judges
from grading.autograder.proof import prove as reference
from grading.autograder.proof.plain import unusual
from grading.autograder.proof.prove import Reference, keep_alignment, made_of, prove, same_bits
from grading.files.items import TASK_1
from grading.grades.numbers import Numbers, with_settings
from grading.grades.rubric import Alignment, Evidence, Lora, Todos, grade
from grading.handed_out.banners import TODOS, fill, read_code
from grading.handed_out.record import ROOT
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.start import warm_python
from hand_ins import save_weights
from solutions import CONV, DOWN, MID, NOT_STRICT, RIGHT, SOLUTION, between_banners
from stand_ins import READ_TEXT

NUMBERS = Numbers(memory_mib=200, disk_mib=16, threads=15, train_seconds=20.0)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Where there can be one, programs are forks of one process, as when the grader runs."""
    with warm_python({"PATH": os.environ["PATH"]}, ["json"]):
        yield


def with_text(todo: str, text: str) -> dict[str, str]:
    return {**SOLUTION, todo: between_banners(todo, text)}


# ---------------------------------------------------------------------------------------------------------------------
# Which texts are plain

# Right ones all the same: they are trained to their end.
NOT_PLAIN = {
    ("3", "a helper function"),
    ("4-1", "by the UNet's own number of skips"),
    ("3", "with the configuration's widths"),
    ("1", "by matrices"),
    ("2", "zero convolutions set to zero again"),
    ("3", "where the model is, and as precise"),
    ("3", "to the end of forward"),
    ("4-1", "in place, behind a copy of the mid block's input"),
}


def test_the_solution_is_plain():
    assert unusual(SOLUTION) is None


def test_nearly_every_right_form_is_plain():
    forms = {(todo, form): unusual(with_text(todo, text)) for todo, form, text in (*RIGHT, *NOT_STRICT)}
    assert {form for form, fault in forms.items() if fault} == NOT_PLAIN
    assert all("TODO (" in forms[form] and "line" in forms[form] for form in NOT_PLAIN)


ADD = "sample = sample + mid_block_additional_residual"
# Texts that do what is right at first and could do anything later; or that only look as if.
TWO_FACED = {
    "counts its runs in a global": ("4-2", f"global n\nn = n + 1\n{ADD}"),
    "counts in an attribute": ("3", f"{DOWN}\n{MID}\nself.n = 1"),
    "counts in a default argument": ("4-2", f"def f(a, n=[]):\n    n.append(1)\n    return a\n{ADD}\nf(sample)"),
    "counts in a keyword's default": ("4-2", f"def f(a, *, n=[]):\n    return a\n{ADD}\nf(sample)"),
    "counts in a layer of the model": ("3", f"{DOWN}\n{MID}\nself.controlnet_down_blocks.append(sample)"),
    "counts in a layer by another name": ("3", f"b = self.controlnet_down_blocks\nb += [b[0]]\n{DOWN}\n{MID}"),
    "changes a layer of the model": ("3", f"{DOWN}\n{MID}\nself.controlnet_down_blocks[0] = self.controlnet_mid_block"),
    "changes a loop's layer": ("3", f"for b in [self.controlnet_down_blocks]:\n    b += [1]\n{DOWN}\n{MID}"),
    "asks for the number": ("4-2", f"if sample.mean() > 1:\n    sample = sample\n{ADD}"),
    "compares": ("4-2", f"{ADD}\nsample = sample if sample[0][0][0][0] > 1 else sample"),
    "asks by truth": ("4-2", f"if sample[0][0][0][0]:\n    {ADD}"),
    "asks by a new meaning of is_controlnet": ("4-1", "is_controlnet = down_block_res_samples[0]"),
    "asks by and": ("4-2", f"{ADD}\nsample[0][0][0][0] and sample"),
    "asks while": ("4-2", f"while sample.mean() < 1:\n    {ADD}\n{ADD}"),
    "asks in a list": ("3", f"{DOWN}\n{MID}\n[x for x in down_block_res_samples if x.sum()]"),
    "asks by an error": ("4-2", f"try:\n    {ADD}\nexcept Exception:\n    pass"),
    "asks by an assertion": ("4-2", f"assert sample.max() < 9\n{ADD}"),
    "asks by numbers": ("4-2", f"{ADD}\nsample = torch.where(sample > 9, 0, sample)"),
    "cuts what is large": ("4-2", f"{ADD}\nsample = sample.clamp(-100, 100)"),
    "adds hardly anything": ("4-2", f"{ADD} + 1e-30"),
    "multiplies": ("4-2", f"{ADD.replace('mid_block', '1 * mid_block')}"),
    "asks for the time": ("4-2", f"import time\n{ADD}"),
    "asks for the time by from": ("4-2", f"from time import time\n{ADD}"),
    "draws lots": ("4-2", f"{ADD}\ntorch.rand(1)"),
    "asks the environment": ("4-2", f"{ADD}\nopen('/proc/self/stat')"),
    "asks the timestep": ("3", f"{DOWN}\n{MID}\ntimestep"),
    "asks for gradients": ("3", f"{DOWN}\n{MID}\nsample.requires_grad"),
    "walks to the frames": ("4-2", f"{ADD}\n(lambda: 0).__globals__"),
    "gives a hook": ("1", f"{CONV}\nmodule.register_forward_hook(print)\nnn.init.zeros_(module.weight)"),
    "patches a module": ("1", f"{CONV}\nmodule.forward = lambda x: x"),
    "patches a class": ("1", f"nn.Conv2d.bias = None\n{CONV}"),
    "keeps a function as a weight": ("1", f"{CONV}\nmodule.bias = lambda: 0"),
    "makes a class": ("1", f"class C(nn.Conv2d):\n    def forward(self, x):\n        return x\n{CONV}"),
    "makes a class of something else": ("1", f"class C(nn.init):\n    pass\n{CONV}"),
    "makes a class with something": ("1", f"class C(nn.Conv2d):\n    n = []\n{CONV}"),
    "patches a class of its own": ("1", f"class C(nn.Conv2d):\n    pass\nC.weight = []\n{CONV}"),
    "a word as an argument": ("2", "for a in ('conv_in',):\n    pass\ndef f(a):\n    getattr(unet, a)"),
    "words as an argument": ("2", "b = ('conv_in',)\ndef f(b):\n    for a in b:\n        getattr(unet, a)"),
    "changes the threads": ("1", f"{CONV}\ntorch.set_num_threads(3)"),
    "seeds": ("1", f"{CONV}\ntorch.manual_seed(3)"),
    "leaves what was there in memory": ("1", f"{CONV}\nmodule.weight = nn.Parameter(torch.empty(1))"),
    "walks a set": ("2", "for name in {'conv_in', 'mid_block'}:\n    pass"),
    "a name put together": ("2", "for a in ('conv_in', 'mid_block'):\n    getattr(unet, a + 'x')"),
    "a name from the weights": ("2", "for a in unet.state_dict():\n    getattr(unet, a)"),
    "a name that was a word before": ("2", "for a in ('conv_in',):\n    a = a + a\n    getattr(unet, a)"),
    "sets what is no copy": ("2", "setattr(controlnet, 'mid_block', unet.mid_block)"),
    "another word": ("2", "getattr(unet, 'register_forward_hook')"),
    "keeps getattr for later": ("2", "g = getattr\ng(unet, 'mid_block')"),
    "maps getattr": ("2", "list(map(getattr, [unet], ['mid_block']))"),
    "a copy of its own making": ("2", "def deepcopy(a):\n    return a\nsetattr(unet, 'conv_in', deepcopy(unet))"),
    "keeps a method for later": ("3", f"{DOWN}\n{MID}\nf = self.controlnet_down_blocks.append\nf(sample)"),
    "changes a layer in a list": ("3", f"{DOWN}\n{MID}\nx = [self.controlnet_down_blocks]\nx[0] += [1]"),
    "a method of a layer in a list": ("3", f"{DOWN}\n{MID}\nx = [self.controlnet_down_blocks]\nx[0].append(1)"),
    "a layer as an argument": ("3", f"def f(a):\n    a += [1]\nf(self.controlnet_down_blocks)\n{DOWN}\n{MID}"),
    "getattr by another name": ("2", "g = getattr\ng(unet, 'mid_block')\ngetattr = g"),
    "decorates": ("4-2", f"@torch.no_grad\ndef f():\n    return 0\n{ADD}"),
    "calls itself": ("4-2", f"def f(a):\n    return f(a)\n{ADD}"),
    "yields": ("4-2", f"def f():\n    yield 0\n{ADD}"),
    "walrus": ("4-2", f"{ADD}\n(x := sample)"),
    "deletes": ("4-2", f"{ADD}\ndel mid_block_additional_residual"),
    "evaluates a text": ("4-2", f"{ADD}\neval('1')"),
    "closes over a name": ("4-2", f"def f():\n    nonlocal sample\n    sample = 1\n{ADD}"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_FACED)
def test_a_text_that_could_do_something_else_later_is_not_plain(name):
    fault = unusual(with_text(*TWO_FACED[name]))
    assert fault and fault.startswith(f"TODO ({TWO_FACED[name][0]}) has "), fault


AROUND = {
    "ends the function": ("3", f"{' ' * 8}{DOWN}\n{' ' * 8}{MID}\n    def other(me):\n        me\n"),
    "hides the rest in a function": ("3", "    x = 1\n    def other(me):\n        me\n"),
    "takes the rest into a branch": ("3", f"        {DOWN}\n        {MID}\n        if guess_mode:\n"),
    "opens a bracket": ("4-2", f"            {ADD}\n            sample = (sample\n"),
    "opens a text": ("4-2", f'            {ADD}\n            """\n'),
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_a_text_that_reaches_beyond_its_banners_is_not_plain(name):
    todo, text = AROUND[name]
    assert unusual({**SOLUTION, todo: text})


def test_what_is_not_plain_is_told_with_its_line():
    """An operator has no line of its own in the syntax tree."""
    parts = with_text("4-2", "sample = sample + mid_block_additional_residual\nsample = sample - sample")
    found = re.fullmatch(r"TODO \(4-2\) has `Sub` in line (\d+)", unusual(parts) or "")
    own = read_code(ROOT / TASK_1 / "diffusion" / "unets" / "unet_2d_condition.py")
    lines = fill(own, {todo: parts[todo] for todo in ("4-1", "4-2")}).splitlines()
    assert found and lines[int(found[1]) - 1].strip() == "sample = sample - sample"


def test_a_bomb_for_the_parser_is_not_plain():
    for text in ("(" * 5000, "x = " + "-" * 15_000 + "1", "\0", "a" + ".a" * 9000):
        assert unusual({**SOLUTION, "1": f"    {text}\n"})


# ---------------------------------------------------------------------------------------------------------------------
# What counts as equal

# Stands in for train.py: writes weights that depend on the texts as a training's would, to the bit.
TRAINER = f"""{READ_TEXT}
shutil.copytree(pattern, output + "/controlnet")
names = {{"output": output, "steps": int(flags["--max_train_steps"])}}
if "nn.Conv2d" not in text:
    exec(text, names)
path = output + "/controlnet/{WEIGHTS}"
data = open(path, "rb").read()
value = struct.unpack("<f", data[-4:])[0] + names["steps"] + names.get("off", 0)
open(path, "wb").write(data[:-4] + struct.pack("<f", value))
"""
MEASURED = Alignment(ious=(0.1,), held_out=(0.2,))
RESULT = Alignment(ious=(0.5, 0.25), held_out=(0.75,), pictures=(b"one", b"two"))


@pytest.fixture
def right(shared, tmp_path) -> Reference:
    """The right solution's weights after a few steps, as the trainer would write them."""
    folder = tmp_path / "reference"
    folder.mkdir(mode=0o700)
    save_weights(folder / reference.STEPS, NUMBERS.prove_steps)
    keep_alignment(RESULT, folder)
    return Reference(folder)


@pytest.fixture
def proved(shared, right, tmp_path):
    def proved(text: str, fault: str | None = None):
        weights = tmp_path / "weights.safetensors"
        parts, hidden = {**SOLUTION, "1": textwrap.indent(text, "    ") + "\n"}, [tmp_path]
        return prove(parts, shared, right, NUMBERS, hidden, weights, fault, program=("-c", TRAINER))

    return proved


def test_equal_weights_prove_the_end(proved):
    assert proved("off = 0") == replace(RESULT, proved_after=NUMBERS.prove_steps)


@pytest.mark.parametrize("off", ["2**-20", "-1", "1e30"])
def test_one_bit_is_enough_to_train_to_the_end(proved, off):
    assert (
        proved(f"off = {off}") == f"its ControlNet differs from the right solution's after {NUMBERS.prove_steps} steps"
    )


def test_a_text_that_is_not_plain_is_not_even_run(proved, tmp_path):
    assert proved("off = 0", "TODO (1) has a branch") == "TODO (1) has a branch, which the proof does not read"
    assert not (tmp_path / "weights.safetensors").exists()


def test_what_fails_at_once_need_not_be_trained(proved):
    failed = proved("raise RuntimeError('lost')")
    assert isinstance(failed, Alignment) and "RuntimeError: lost" in failed.problem and not failed.proved_after


def test_bits_count_and_not_numbers(tmp_path):
    zero = np.zeros(3, np.float32)
    files = {"zero": zero, "minus": -zero, "nan": zero * np.nan, "wider": zero.astype(np.float64), "two": zero[:2]}
    for name, tensor in files.items():
        save_file({"a": tensor}, tmp_path / name)
    save_file({"b": zero}, tmp_path / "other name")
    for name in (*files, "other name"):
        assert same_bits(tmp_path / name, tmp_path / name)
        assert same_bits(tmp_path / "zero", tmp_path / name) is (name == "zero")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
def test_a_hand_in_cannot_read_or_change_what_others_are_proved_by(proved, right, shared, tmp_path):
    """Even one that runs whatever it likes; and the next one is judged as if it had not been there."""
    kept = {path.name: path.read_bytes() for path in right.folder.iterdir()}
    text = f"""
import os, shutil
for folder in ({str(right.folder)!r}, {str(shared.folder)!r}, {str(tmp_path)!r}):
    for name in ("{reference.STEPS}", "{reference.RESULT}", "0.png", "cache", "controlnet/{WEIGHTS}"):
        try: print("READ", len(open(os.path.join({str(right.folder)!r}, name), "rb").read()))
        except OSError: pass
        try: open(os.path.join(folder, name), "wb").write(b"forged")
        except OSError: pass
        try: os.rename(os.path.join(folder, name), os.path.join(folder, "gone"))
        except OSError: pass
off = 1
"""
    assert "differs from the right solution's" in proved(text.strip())
    assert {path.name: path.read_bytes() for path in right.folder.iterdir()} == kept
    assert load_file(shared.pattern / WEIGHTS)["conv.weight"].sum() == 12
    assert proved("off = 0").proved_after and "differs" in proved("off = 3")


# ---------------------------------------------------------------------------------------------------------------------
# The whole, with what takes time left out


@pytest.fixture
def align(shared, right, tmp_path, monkeypatch):
    """The judge of the alignment, whose trainings are counted by their steps and do what the stand-in does."""
    steps: list[int] = []
    trained = reference.train

    def train(parts, shared, numbers, seconds, hidden, weights, program=(), n=0):
        steps.append(n or numbers.train_steps)
        return trained(parts, shared, numbers, seconds, hidden, weights, ("-c", TRAINER), n)

    monkeypatch.setattr("grading.autograder.proof.prove.train", train)
    monkeypatch.setattr("grading.autograder.grade.train", train)
    monkeypatch.setattr("grading.autograder.grade.evaluate", lambda *_: MEASURED)

    def align(parts, prove=True) -> tuple[Alignment, list[int]]:
        steps.clear()
        judges = real_judges(shared, NUMBERS, [tmp_path], tmp_path, 60, right if prove else None)
        return judges.alignment(parts), list(steps)

    return align


def test_only_what_is_not_proved_is_trained_to_its_end(align):
    few, whole = NUMBERS.prove_steps, NUMBERS.train_steps
    assert align(SOLUTION) == (replace(RESULT, proved_after=few), [few])
    assert align(SOLUTION, prove=False) == (MEASURED, [whole])
    odd, steps = align({**SOLUTION, "3": f"        print(1)\n{SOLUTION['3']}"})
    assert steps == [whole] and odd.ious == (0.1,) and "the name `print`" in odd.why_whole


def test_the_proof_computes_with_as_many_threads_as_the_right_solution_did(align, shared, right, monkeypatch):
    """However many hand-ins are graded at once: sums that are shared among more threads are rounded otherwise."""
    told: list[tuple[str, str]] = []
    run_python = Sandbox.run_python

    def run(sandbox, arguments, limits, environment=None, cwd=None):
        steps = arguments[arguments.index("--max_train_steps") + 1]
        told.append((steps, (environment or {}).get("OMP_NUM_THREADS", "any")))
        return run_python(sandbox, arguments, limits, environment, cwd)

    monkeypatch.setattr(Sandbox, "run_python", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    align(SOLUTION)
    align(SOLUTION, prove=False)
    assert told == [(str(NUMBERS.prove_steps), "1"), (str(NUMBERS.train_steps), "any")]


def test_the_result_says_which_of_the_two_it_was():
    def said(alignment: Alignment) -> str:
        good = {name: Lora(None) for name in ("lora_1", "lora_2")}
        evidence = Evidence({}, todos=Todos(dict.fromkeys(TODOS, ())), alignment=alignment, loras=good)
        (score,) = [score for score in grade(evidence, NUMBERS) if score.name.startswith("Task 1: ControlNet")]
        assert score.score == 10
        return score.output

    whole = Alignment(ious=(0.9,), held_out=(0.8,))
    assert "trained to its end" not in said(whole)
    assert "It was trained to its end, as it differs." in said(replace(whole, why_whole="it differs"))
    proof = said(replace(whole, proved_after=8))
    assert "without training it to its end: after 8 steps its ControlNet equals the right solution's" in proof


def test_a_reference_is_of_its_numbers_code_and_libraries(monkeypatch, tmp_path):
    now = made_of(NUMBERS)
    assert now == made_of(replace(NUMBERS, least_iou=0.7)), "no weights and no pictures depend on that"
    for change in ("train_steps=701", "prove_steps=9", "seed=1", "held_out=8", "guidance_scale=2"):
        assert made_of(with_settings(NUMBERS, [change])) != now
    monkeypatch.setattr("grading.autograder.proof.identity.version_of", lambda name: "0")
    assert made_of(NUMBERS) != now
    assert reference.find_reference(tmp_path, NUMBERS) is None
    assert with_settings(NUMBERS, ["prove=False"]).prove is False


def test_what_was_graded_counts_only_while_the_same_is_handed_out(monkeypatch):
    """Also where no line of code has changed: the record of what was handed out is made after the code."""
    monkeypatch.setattr("grading.autograder.proof.identity.digest_of", lambda paths: sorted(map(str, paths)))
    files = json.loads(grader_key(NUMBERS, quick=False))["code"]
    for name in ("handed_out/handed_out.json.gz", "contest/demo.toml", "autograder/run.py"):
        assert str(ROOT / "grading" / name) in files


def test_a_quick_look_trains_and_draws_nothing(monkeypatch):
    monkeypatch.setattr("grading.autograder.grade.check_todos", lambda *_: Todos(dict.fromkeys(TODOS, ())))
    judges = quick_judges(NUMBERS, [Path("/nowhere")])
    assert judges.todos({}).wrong == [] and judges.alignment({}).problem == "A quick look trains nothing."
    assert judges.loras({}) == ({}, ())
