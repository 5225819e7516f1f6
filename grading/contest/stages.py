"""Runs the stages of a recipe, one after the other, each by a process that may be stopped and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import psutil

from finetune.run.checkpoints import find_checkpoint, write_file
from finetune.run.progress import progress_bar

from ..files.items import TASK_1
from ..sandbox.cores import thread_environment
from ..sandbox.trusted import ROOT, GraderError
from .recipe import Recipe, RecipeError

BASE = "tiny_sd"
PROGRAM = Path(__file__).with_name("programs") / "train_timed.py"
JOURNAL, LOG, MODEL = "contest.json", "log.txt", "controlnet"
MIB = 2**20
POLL_SECONDS = 0.25
LAST_SECONDS = 10.0
PARSE_SECONDS = 600.0
TAIL_CHARACTERS = 1500


class Stopped(Exception):
    """Somebody pressed Ctrl-C; what was trained is kept, and the message says where a second start goes on."""


@dataclass(frozen=True)
class Conditions:
    """What is the same for all recipes.

    target: the mean IoU of `held_out` conditions, drawn with `guidance_scale`, that must be reached.
    gap: seconds of training between two checks.
    threads: to compute with; seconds: of training, at most; memory_mib: at most, resident.
    """

    target: float = 0.90
    held_out: int = 32
    guidance_scale: float = 3.0
    gap: float = 5.0
    threads: int = 2
    seconds: float = 1800.0
    memory_mib: int = 6144


@dataclass(frozen=True)
class Reached:
    """What a recipe came to: `how` it ended, after how many seconds of training, with which mean IoU at last."""

    how: str
    seconds: float
    stage: int
    step: int
    iou: float | None
    checks: int

    @property
    def done(self) -> bool:
        return self.how == "reached"


def environment(threads: int) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **thread_environment(threads), **own}


def check_flags(recipe: Recipe) -> None:
    """Lets train.py's own parser read the flags of every stage.

    Raises:
        RecipeError: with the parser's message.
        GraderError: if the parser itself cannot be asked.
    """
    flags = json.dumps([recipe.flags(stage) for stage in range(len(recipe.stages))])
    run = subprocess.run(
        [sys.executable, str(PROGRAM), "--parse", flags], cwd=ROOT / TASK_1, env=environment(1), capture_output=True,
        stdin=subprocess.DEVNULL, text=True, timeout=PARSE_SECONDS,
    )  # fmt: skip
    if run.returncode == 2:
        said = run.stderr.rpartition("error: ")[2].strip()
        raise RecipeError(f"The recipe {recipe.name} cannot be trained with: {said}")
    if run.returncode:
        raise GraderError(f"train.py's flags cannot be read: {run.stderr[-TAIL_CHARACTERS:].strip()}")


def read_journal(folder: Path) -> dict[str, Any]:
    file = folder / JOURNAL
    return json.loads(file.read_text()) if file.is_file() else {"seconds": {}, "checks": [], "end": None}


def stage_folder(folder: Path, stage: int) -> Path:
    return folder / f"stage-{stage + 1}"


def stage_flags(recipe: Recipe, stage: int, folder: Path, conditions: Conditions) -> list[str]:
    """train.py's flags: the recipe's, and behind them, where they count, those that the contest sets."""
    own = {
        "pretrained_model_name_or_path": ROOT / BASE,
        "dataset_name": "rendered",
        "output_dir": stage_folder(folder, stage).resolve(),
        "resume_from_checkpoint": "latest",
        "validation_guidance_scale": conditions.guidance_scale,
    }
    if stage:
        own["controlnet_model_name_or_path"] = (stage_folder(folder, stage - 1) / MODEL).resolve()
    return [*recipe.flags(stage), *(f"--{name}={value}" for name, value in own.items())]


def run_stage(recipe: Recipe, stage: int, folder: Path, conditions: Conditions, seconds: float) -> None:
    """Trains a stage, or goes on with it; afterwards its journal says how it ended.

    Raises:
        Stopped: by Ctrl-C.
        GraderError: if the training fails for another reason than its recipe.
    """
    place = stage_folder(folder, stage)
    if place.exists() and (not (place / JOURNAL).is_file() or find_checkpoint(place, "latest") is None):
        shutil.rmtree(place)  # stopped before its first checkpoint, so its time is not known
    place.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    settings = {
        "journal": str((place / JOURNAL).resolve()), "pipe": writing, "target": conditions.target,
        "conditions": conditions.held_out, "gap": conditions.gap, "seconds": seconds,
    }  # fmt: skip
    command = [sys.executable, str(PROGRAM), json.dumps(settings), *stage_flags(recipe, stage, folder, conditions)]
    with open(reading) as news, (place / LOG).open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT / TASK_1, env=environment(conditions.threads), stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, pass_fds=[writing], start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        title = f"{recipe.name}, stage {stage + 1} of {len(recipe.stages)}"
        shown = threading.Thread(target=show, args=(news, title), daemon=True)
        shown.start()
        why = wait(process, conditions.memory_mib)
        shown.join(LAST_SECONDS)
    journal = read_journal(place)
    if why == "memory":
        write_file(place / JOURNAL, json.dumps({**journal, "end": why}) + "\n")
    elif journal["end"] is None and why == "asked":
        raise Stopped(where(place))
    elif process.returncode or journal["end"] is None:
        tail = (place / LOG).read_text(errors="replace")[-TAIL_CHARACTERS:].strip()
        raise GraderError(f"The training of {recipe.name} failed, see {place / LOG}: {tail}")


def where(place: Path) -> str:
    """Where a stopped stage goes on."""
    checkpoint = find_checkpoint(place, "latest")
    if checkpoint is None:
        return f"{place.name} begins anew, as it had not saved anything yet"
    return f"{place.name} goes on after step {checkpoint.name.partition('-')[2]}"


def show(news: Iterator[str], title: str) -> None:
    """A progress bar of what the stage tells: steps to its end, which it may not need to reach."""
    bar = progress_bar(total=None, desc=title, unit="step")
    for line in news:
        said = json.loads(line)
        bar.total = said["steps"] or None
        iou = "not drawn yet" if said["iou"] is None else f"{said['iou']:.3f}"
        bar.set_postfix_str(f"{said['seconds']:.0f} s count, IoU {iou}", refresh=False)
        bar.update(said["step"] - bar.n)
    bar.close()


def wait(process: subprocess.Popen, memory_mib: int) -> str:
    """Waits for the end, and says whether it was "asked" for it by Ctrl-C or ended for its "memory", else nothing.

    Ctrl-C lets it save first, a second one does not.
    """
    asked = ""
    while process.poll() is None:
        try:
            if resident(process.pid) > memory_mib:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return "memory"
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL if asked else signal.SIGINT)
            if asked:
                continue
            asked = "asked"
            print("\nSaving, after this step or check. Ctrl-C again to stop at once.", file=sys.stderr, flush=True)
    return asked


def resident(pid: int) -> float:
    """MiB in memory of a process and all that it started."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / MIB
    except psutil.NoSuchProcess:  # it, or one of them, has just ended
        return 0.0


def run_recipe(recipe: Recipe, folder: Path, conditions: Conditions) -> Reached:
    """Trains a recipe until it reaches the target or ends otherwise; what a run before has done is not done again.

    Raises:
        Stopped: by Ctrl-C.
        GraderError: if the training fails for another reason than its recipe.
    """
    seconds, checks = 0.0, 0
    for stage in range(len(recipe.stages)):
        place = stage_folder(folder, stage)
        if read_journal(place)["end"] is None:
            run_stage(recipe, stage, folder, conditions, conditions.seconds - seconds)
        journal = read_journal(place)
        checks += len(journal["checks"])
        last = journal["checks"][-1] if journal["checks"] else {"step": 0, "iou": None, "seconds": 0.0}
        taken = last["seconds"] if journal["end"] == "reached" else max(journal["seconds"].values(), default=0.0)
        seconds += taken
        if journal["end"] != "steps":
            return Reached(journal["end"], seconds, stage + 1, last["step"], last["iou"], checks)
    return Reached("steps", seconds, len(recipe.stages), last["step"], last["iou"], checks)
