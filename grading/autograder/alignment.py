"""Do the generated images align with the conditions? Trains the student's ControlNet, and measures what it draws.

The training runs in the sandbox, in the grader's own copy of Task 1 with the student's texts in it. Of what it writes
only numbers are taken: weights, whose names and shapes must be the right ones. The unchanged code then draws with them
and measures, so no picture and no score comes from a process that ran the student's code.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from safetensors.numpy import save_file

from ..files.items import TASK_1
from ..files.safe_tensors import TensorsError, read_tensors
from ..grades.numbers import Numbers
from ..grades.rubric import Alignment
from ..sandbox.cores import thread_environment
from ..sandbox.limits import SandboxError
from ..sandbox.sandbox import Sandbox
from ..sandbox.trusted import GraderError, run_trusted
from .student_code import ROOT, how_it_ended, lay_out, make_readable

BASE = "tiny_sd"
CACHE, MODEL, OUTPUT = "cache", "controlnet", "output"
RUN_FILE = "run.json"  # by which a training knows that its folder is taken
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
BASE_FILES = ("pictures", "training", "measures", "*.png", "next", "README.md", "__pycache__", "*.pt")
MAX_CONFIG_BYTES = 100_000
SCORE = Path(__file__).resolve().parent / "programs" / "score_controlnet.py"
# Encoding the training data is done once for all hand-ins, and on a slow machine it may take its time.
PREPARE_SECONDS = 1800
# Sums are rounded otherwise when they are shared among more threads, and hand-ins are graded with as many as are left.
PROOF_THREADS = 1


@dataclass(frozen=True)
class Shared:
    """What is the same for all hand-ins, readable by the sandbox: the base model, encoded data, and as a pattern of
    what a training writes the result of one step of the right solution.

    `base_model` is a base model that lies elsewhere.
    """

    folder: Path
    base_model: Path | None = None

    @property
    def base(self) -> Path:
        return self.base_model or self.folder / BASE

    @property
    def cache(self) -> Path:
        return self.folder / CACHE

    @property
    def pattern(self) -> Path:
        return self.folder / MODEL


def training_flags(numbers: Numbers, base: Path, output: Path | str, steps: int) -> list[str]:
    """What train.py is started with: the preset `grade` on this base, for so many steps from a fixed seed."""
    settings = {
        "preset": "grade",
        "pretrained_model_name_or_path": base,
        "output_dir": output,
        "max_train_steps": steps,
        "lr_warmup_steps": min(numbers.warmup_steps, steps - 1),
        "seed": numbers.seed,
    }
    return [*(text for name, value in settings.items() for text in (f"--{name}", str(value))), *numbers.train_flags]


def prepare(folder: Path, numbers: Numbers, seconds: float = PREPARE_SECONDS) -> None:
    """Trains the right solution for one step, for which the training data are encoded unless `folder` has that already.

    Raises:
        GraderError: if that does not work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).unlink(missing_ok=True)  # of an earlier preparation, from which only the encodings are wanted
    flags = training_flags(numbers, ROOT / BASE, folder.resolve(), steps=1)
    run_trusted(["train.py", *flags], ROOT / TASK_1, seconds)


def share(prepared: Path, folder: Path) -> Shared:
    """Copies what `prepare` made and the base model into `folder`, where the sandbox can read it but not change it."""
    for name in (CACHE, MODEL):
        shutil.copytree(prepared / name, folder / name)
    shutil.copytree(ROOT / BASE, folder / BASE, ignore=shutil.ignore_patterns(*BASE_FILES))
    make_readable(folder)
    return Shared(folder)


def train(
    parts: Mapping[str, str],
    shared: Shared,
    numbers: Numbers,
    seconds: float,
    hidden: Sequence[Path],
    weights: Path,
    program: Sequence[str] = ("train.py",),
    steps: int = 0,
) -> Alignment | None:
    """Trains the student's ControlNet in the sandbox and writes its weights to the file `weights`.

    Returns what went wrong, if something did.

    Args:
        seconds: of the training's own time, see `grading.sandbox.limits`.
        program: what runs in the folder of Task 1, with train.py's flags.
        steps: how many, with `PROOF_THREADS`; 0: as many as `numbers` say.
    """
    with Sandbox(hidden, [shared.folder]) as sandbox:
        code = sandbox.folder / "code"
        task_1 = lay_out(code, parts)
        output = sandbox.work / OUTPUT
        output.mkdir()
        if sandbox.user is None:  # then a copy, as it could change the original
            shutil.copytree(shared.cache, output / CACHE)
        else:
            (output / CACHE).symlink_to(shared.cache)
            shutil.chown(output, sandbox.user, sandbox.user)
        flags = training_flags(numbers, shared.base, output, steps or numbers.train_steps)
        environment = {"PYTHONPATH": str(code), **(thread_environment(PROOF_THREADS) if steps else {})}
        outcome = sandbox.run_python([*program, *flags], numbers.limits(seconds), environment, cwd=task_1)
        if not outcome.succeeded:
            return Alignment(f"the training {how_it_ended(outcome)}.", log=outcome.tail)
        problem = take_weights(sandbox, shared, weights)
        return Alignment(problem, log=outcome.tail) if problem else None


def take_weights(sandbox: Sandbox, shared: Shared, target: Path) -> str | None:
    """Copies the weights of the trained ControlNet into a new file, or says what is wrong with them."""
    pattern = read_tensors(shared.pattern / WEIGHTS)
    max_bytes = 2 * (shared.pattern / WEIGHTS).stat().st_size
    try:
        config = sandbox.collect(f"{OUTPUT}/{MODEL}/{CONFIG}", MAX_CONFIG_BYTES)
        data = sandbox.collect(f"{OUTPUT}/{MODEL}/{WEIGHTS}", max_bytes)
    except SandboxError as error:
        return f"the training left no ControlNet that can be taken: {error}"
    if data is None or config is None:
        return "the training ended without writing a ControlNet."
    if not same_config(config, (shared.pattern / CONFIG).read_bytes()):
        return "the training wrote a ControlNet of another configuration than train.py asks for."
    target.write_bytes(data)
    try:
        tensors = read_tensors(target)
    except TensorsError as error:
        return f"the trained ControlNet's file {str(error).partition(': hand in')[0]}."
    problem = misfit(tensors, pattern)
    if problem is None:
        save_file(tensors, target)  # afresh: nothing else that the file may hold goes on
    return problem


def same_config(config: bytes, expected: bytes) -> bool:
    try:
        return json.loads(config) == json.loads(expected)
    except (ValueError, RecursionError):
        return False


def misfit(tensors: Mapping[str, np.ndarray], pattern: Mapping[str, np.ndarray]) -> str | None:
    """What about the weights differs from those that they must be like."""
    missing, more = sorted(pattern.keys() - tensors.keys()), sorted(tensors.keys() - pattern.keys())
    if missing or more:
        what = f"has no weights {missing[0]}" if missing else f"has weights {more[0][:100]}, which do not belong there"
        return f"the trained ControlNet {what}."
    for name, tensor in tensors.items():
        if tensor.shape != pattern[name].shape:
            return f"the trained ControlNet's {name} has the shape {tensor.shape}, not {pattern[name].shape}."
        if not np.isfinite(tensor).all():
            return f"the trained ControlNet's {name} is not finite: the training diverged."
    return None


def evaluate(weights: Path, shared: Shared, numbers: Numbers, seconds: float, folder: Path) -> Alignment:
    """Draws with the weights, by the unchanged code, and measures the overlap with the conditions, or says why not.

    Raises:
        GraderError: if that does not work.
    """
    model, results = folder / MODEL, folder / "results"
    model.mkdir()
    shutil.copy(shared.pattern / CONFIG, model / CONFIG)
    shutil.copy(weights, model / WEIGHTS)
    flags = ["--num_conditions", str(numbers.held_out), "--guidance_scale", str(numbers.guidance_scale)]
    flags += ["--base", str(shared.base), "--controlnet", str(model), "--output_dir", str(results)]
    run_trusted([str(SCORE), *flags], ROOT / TASK_1, seconds)
    try:
        measured = json.loads((results / "scores.json").read_text())
        if "problem" in measured:
            return Alignment(measured["problem"])
        pictures = [(results / f"{i}.png").read_bytes() for i in range(len(measured["test"]))]
        return Alignment(ious=tuple(measured["test"]), held_out=tuple(measured["held_out"]), pictures=tuple(pictures))
    except (OSError, ValueError, KeyError) as error:
        raise GraderError(f"{SCORE.name} wrote other results than expected: {error!r}") from error
