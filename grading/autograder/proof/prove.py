"""The right solution, trained once and kept, and the proof that a hand-in would end where it ended.

Training is deterministic: the same code, data, seed and number of threads give the same weights to the bit. If a
hand-in's text is plain (see `plain.py`), so that it does the same in every step, and its ControlNet equals the right
solution's to the bit after a few steps of training, then it equals it after all of them, and what that one draws is
what it would draw.

Those few steps are a training of their own, from the same seed on the same data, in which the learning rate reaches its
height at once: after it every weight has moved, those behind two zero convolutions too. A wrong gradient, a wrong
weight or a wrong sum changes the weights. Whatever differs by one bit is no fault: it is trained to its end.

The reference lies outside the sandbox's sight, in a folder that only its owner can enter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, Sequence

from safetensors.numpy import save_file

from ...files.items import TASK_1
from ...files.safe_tensors import read_tensors
from ...grades.numbers import Numbers
from ...grades.rubric import Alignment
from ...sandbox.trusted import run_trusted
from ..alignment import BASE, CACHE, MODEL, PROOF_THREADS, WEIGHTS, Shared, evaluate, prepare, train, training_flags
from ..student_code import ROOT
from .identity import identity

STEPS, WHOLE = "after_a_few_steps.safetensors", "after_all_steps.safetensors"
RESULT, DONE = "alignment.json", "made_of.json"
# The training of the right solution goes on where it stopped, if somebody stops it.
RESUMABLE = ("--checkpointing_steps", "100", "--checkpoints_total_limit", "1", "--resume_from_checkpoint", "latest")


@dataclass(frozen=True)
class Reference:
    """A folder with the right solution's weights after a few steps and after all, and with what it draws then."""

    folder: Path

    @property
    def steps(self) -> Path:
        return self.folder / STEPS

    @property
    def whole(self) -> Path:
        return self.folder / WHOLE

    def alignment(self) -> Alignment:
        kept = json.loads((self.folder / RESULT).read_text())
        pictures = tuple((self.folder / f"{i}.png").read_bytes() for i in range(len(kept["ious"])))
        return Alignment(ious=tuple(kept["ious"]), held_out=tuple(kept["held_out"]), pictures=pictures)


def prepare_once(prepared: Path, numbers: Numbers, seconds: float) -> None:
    """`alignment.prepare`, unless it has been there with the same numbers, code and libraries.

    Raises:
        GraderError: if that does not work.
    """
    made = identity(["task_1_controlnet", "finetune"], training_flags(numbers, BASE, "", 1))
    known = prepared / DONE
    if known.is_file() and known.read_text() == json.dumps(made) and (prepared / MODEL / WEIGHTS).is_file():
        return
    known.unlink(missing_ok=True)
    prepare(prepared, numbers, seconds)
    known.write_text(json.dumps(made))


def made_of(numbers: Numbers) -> dict[str, str]:
    """What a reference depends on."""
    flags = [training_flags(numbers, BASE, "", steps) for steps in (numbers.train_steps, numbers.prove_steps)]
    settings = [*flags, numbers.held_out, numbers.guidance_scale, PROOF_THREADS]
    return identity(["task_1_controlnet", "finetune", "grading/autograder/programs"], settings)


def find_reference(prepared: Path, numbers: Numbers) -> Reference | None:
    """The reference that fits the numbers, code, libraries and processor of now, if there is one."""
    folder = place(prepared, numbers)
    return Reference(folder) if (folder / DONE).is_file() else None


def place(prepared: Path, numbers: Numbers) -> Path:
    digest = hashlib.sha256(json.dumps(made_of(numbers), sort_keys=True).encode()).hexdigest()
    return prepared / f"reference-{digest[:16]}"


def make_reference(prepared: Path, numbers: Numbers, seconds: float) -> Reference:
    """The reference that fits; trains the right solution if there is none, or goes on where that was stopped.

    Args:
        prepared: where `alignment.prepare` has been.

    Raises:
        GraderError: if that does not work.
    """
    found = find_reference(prepared, numbers)
    if found:
        return found
    folder = place(prepared, numbers)
    work = folder.with_name(f".{folder.name}.unfinished")
    work.mkdir(mode=0o700, exist_ok=True)
    for name in ("few", "drawn"):  # of a start that was stopped; the long training goes on
        shutil.rmtree(work / name, ignore_errors=True)
    for name, steps, more in (("few", numbers.prove_steps, ()), ("all", numbers.train_steps, RESUMABLE)):
        output = work / name
        output.mkdir(exist_ok=True)
        if not (output / CACHE).exists():
            (output / CACHE).symlink_to((prepared / CACHE).resolve())
        flags = training_flags(numbers, ROOT / BASE, output.resolve(), steps)
        run_trusted(["train.py", *flags, *more], ROOT / TASK_1, seconds, PROOF_THREADS)
    for name, target in (("few", STEPS), ("all", WHOLE)):
        save_file(read_tensors(work / name / MODEL / WEIGHTS), work / target)
    drawn = work / "drawn"
    drawn.mkdir()
    keep_alignment(evaluate(work / WHOLE, Shared(prepared, ROOT / BASE), numbers, seconds, drawn), work)
    for name in ("few", "all", "drawn"):
        shutil.rmtree(work / name)
    (work / DONE).write_text(json.dumps(made_of(numbers), indent=1))
    os.replace(work, folder)
    return Reference(folder)


def keep_alignment(alignment: Alignment, folder: Path) -> None:
    for i, picture in enumerate(alignment.pictures):
        (folder / f"{i}.png").write_bytes(picture)
    (folder / RESULT).write_text(json.dumps({"ious": alignment.ious, "held_out": alignment.held_out}))


def prove(
    parts: Mapping[str, str],
    shared: Shared,
    reference: Reference,
    numbers: Numbers,
    hidden: Sequence[Path],
    weights: Path,
    fault: str | None,
    program: Sequence[str] = ("train.py",),
) -> Alignment | str:
    """How the training ends, if that is known after a few steps; else why it must go on to its end, as half a sentence.

    A text that fails in these steps fails in the whole training, whose first steps are the same.

    Args:
        weights: a file for the weights after these steps.
        fault: what `plain.unusual` says of the texts.
    """
    if fault:
        return f"{fault}, which the proof does not read"
    steps = numbers.prove_steps
    failed = train(parts, shared, numbers, numbers.train_seconds, hidden, weights, program, steps)
    if failed:
        return failed
    if not same_bits(weights, reference.steps):
        return f"its ControlNet differs from the right solution's after {steps} steps"
    return replace(reference.alignment(), proved_after=steps)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two files of weights have the same names, shapes, types and bits."""
    tensors, others = read_tensors(one), read_tensors(other)
    return tensors.keys() == others.keys() and all(
        (tensor.dtype, tensor.shape, tensor.tobytes())
        == (others[name].dtype, others[name].shape, others[name].tobytes())
        for name, tensor in tensors.items()
    )
