"""What a run is, kept with it in words: no folder is given to another training, and no old result passes for new.

`run.json` in the folder, and in each checkpoint `trainer_state.json`, hold the flags that the run was trained with and
what its base model and its data were.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Iterator, TextIO

from .checkpoints import STATE_FILE, CheckpointError, find_checkpoint, read_state, write_file
from .notes import say_once

try:
    import fcntl
except ImportError:  # on Windows: there no folder is locked
    fcntl = None

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
# The open lock files of the folders that this process trains in: the locks go when the process does, however it ends.
_locked: dict[Path, TextIO] = {}
# Flags that name what is compared by what it holds: models and data may lie elsewhere now.
NAMES = {
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "dataset_name", "train_data_dir",
    "instance_data_dir", "class_data_dir", "max_train_samples",
}  # fmt: skip
# Flags on which nothing depends that is learnt, but for rounding.
FREE = {
    "preset", "dry_run", "output_dir", "part_of", "resume_from_checkpoint",
    "checkpointing_steps", "checkpoints_total_limit", "report_to", "mixed_precision_asked",
    "validation_data_dir", "validation_loss_steps",  # of samples that are not trained on
    "dataloader_num_workers", "gradient_checkpointing", "compile", "no_cache", "also_save",
    "validation_steps", "validation_epochs", "validation_prompt", "num_validation_images", "validation_guidance_scale",
    "push_to_hub", "hub_model_id",
    "train_batch_size", "gradient_accumulation_steps",  # their product counts, as `samples_per_step`
}  # fmt: skip
# Flags that may change as a run goes on: they take effect, and it is said.
CHANGEABLE = {"learning_rate", "max_grad_norm", "max_train_steps"}
WORDS = {
    "program": "the program",
    "base": "the base model",
    "start": "the ControlNet to start from",
    "data": "the data",
    "class": "the pictures of the class",
    "samples_per_step": "the samples of a step (batch size, accumulation and processes multiplied)",
}
# Where mpirun says how many processes it has started, each in the releases of another maker.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MPI_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# So many pieces of a file stand for it: weights that were trained further differ nearly everywhere.
PIECES, PIECE_BYTES = 1024, 1024


class RunFinished(Exception):
    """Nothing is left to train; the message says so, and where the result is."""


def fingerprint(name: str) -> str:
    """Differs where the model in a local folder does, wherever that lies; a model of the hub is known by its name."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder)):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
        with path.open("rb") as stream:
            for position in range(0, size, max(PIECE_BYTES, size // PIECES)):
                stream.seek(position)
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    """Of a pipeline the files of its parts, beside which anything may lie; of a model's folder those in it."""
    parts = [folder / part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")]
    for place in [part for part in parts if part.is_dir()] or [folder]:
        yield from (path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))


def _known_as(words: str, identity: str) -> dict[str, Any]:
    """What is compared by its identity and told in words."""
    return {"words": words, "identity": identity}


def data_identity(data: Any) -> str:
    """Of what has `len` and a string `fingerprint`: the number of its samples, and what they are."""
    return f"{len(data)} {data.fingerprint}"


def data_behind(model: Path) -> list[str] | None:
    """The identities of all data that a trained model has seen: in its run, and in that of the model it started from.

    None if that is not known, as of a model from elsewhere.
    """
    settings = _settings_of_model(model)
    if settings is None:
        return None
    before = (settings.get("start") or {"data": []})["data"]
    return None if before is None else [*before, settings["data"]["identity"]]


def _settings_of_model(folder: Path) -> dict[str, Any] | None:
    """The settings of the run, or of the checkpoint, that a folder with a trained model lies in; None if in neither."""
    for name in (RUN_FILE, STATE_FILE):
        file = folder.resolve().parent / name
        if file.is_file():
            return json.loads(file.read_text())["settings"]
    return None


def processes_started() -> int:
    """How many processes a launcher (torchrun, accelerate launch, mpirun) has started for this training."""
    names = [*MPI_SIZES, *(["WORLD_SIZE"] if "LOCAL_RANK" in os.environ else [])]
    return max(int(os.environ.get(name, 1)) for name in names)


def is_main_process() -> bool:
    """Whether of the processes that a launcher has started this is the first; known before they are joined."""
    names = [*MPI_RANKS, *(["RANK"] if "LOCAL_RANK" in os.environ else [])]
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def lock(folder: Path) -> None:
    """Keeps other trainings out of a folder until this process ends, however it does; makes the folder.

    Of several processes that train together the main one has it. Where there are no locks, nothing is locked.

    Raises:
        CheckpointError: if another training is running there.
    """
    place = folder.resolve()
    if fcntl is None or place in _locked or not is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK_FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which forked workers, unlike an open file, do not inherit
    except OSError as error:
        with file:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                say_once(f"the disk of {folder} has no locks ({error}): do not start two trainings in it at once.")
                return
            time.sleep(0.2)  # whoever has just locked it is still writing who it is
            file.seek(0)
            raise CheckpointError(
                f"Another training is running in {folder} (process {file.read()}): wait for it, or choose another "
                f"--output_dir."
            ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locked[place] = file


def holds_run(folder: Path) -> bool:
    """Whether there is something to go on from, or a result."""
    return find_checkpoint(folder, "latest") is not None or read_run(folder)["finished"] is not None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What makes a training with these flags the training that it is, as far as it is known before the data are."""
    base = args.pretrained_model_name_or_path
    settings = {
        "program": Path(sys.argv[0]).name,
        "base": _known_as(base, fingerprint(base)),
        "samples_per_step": args.train_batch_size * args.gradient_accumulation_steps * processes_started(),
    }
    if hasattr(args, "controlnet_model_name_or_path"):
        start = args.controlnet_model_name_or_path
        settings["start"] = start and {**_known_as(start, fingerprint(start)), "data": data_behind(Path(start))}
    kept = sorted(set(vars(args)) - NAMES - FREE)
    return {**settings, **{name: getattr(args, name) for name in kept}}


def differences(was: dict[str, Any], now: dict[str, Any], changeable: bool) -> list[str]:
    """How the settings differ that both know, in words: those that may change, or those that make another training."""
    found = []
    for name in now:
        if name in was and _identity(was[name]) != _identity(now[name]) and (name in CHANGEABLE) == changeable:
            before, after = _in_words(was[name]), _in_words(now[name])
            change = f"was {before}, is {after}" if before != after else f"is still {after}, but holds something else"
            found.append(f"{WORDS.get(name, f'--{name}')} {change}")
    return found


def _identity(setting: Any) -> Any:
    return setting["identity"] if isinstance(setting, dict) else setting


def _in_words(setting: Any) -> str:
    return setting["words"] if isinstance(setting, dict) else str(setting)


def keep(output_dir: Path, settings: dict[str, Any], finished: int | None, result: str | None, **more: Any) -> None:
    """Writes `run.json`: the step at which the run was finished, or None while it goes on, its result's name, and what
    else there is to know."""
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {"finished": finished, "result": result, "settings": settings, **more}
    write_file(output_dir / RUN_FILE, json.dumps(content, indent=2) + "\n")


def read_run(output_dir: Path) -> dict[str, Any]:
    """What `keep` wrote last; where that was nothing, no settings and not finished."""
    file = output_dir / RUN_FILE
    return json.loads(file.read_text()) if file.is_file() else {"finished": None, "result": None, "settings": None}


class Run:
    """A training as its flags describe it, and the folder that it is to have."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output_dir: Path = args.output_dir
        self.whole: Path = getattr(args, "part_of", None) or args.output_dir  # what there is one of for all stages
        self.resume_from: str | None = args.resume_from_checkpoint
        self.settings = settings_of(args)

    def add_data(self, name: str | Path, data: Any, role: str = "data") -> None:
        """What is trained on; `role` is a key of WORDS."""
        self.settings[role] = _known_as(f"{len(data)} samples of {name}", data_identity(data))

    def check(self) -> None:
        """Takes the folder: to be called before anything is written and before any long work; again if more is known.

        Raises:
            CheckpointError: if another training is running in the folder; if it holds a run, and going on with that is
                not what was asked for; or if there is no such checkpoint.
        """
        lock(self.output_dir)
        chosen, finished = self._found()
        used = holds_run(self.output_dir)
        elsewhere = chosen is not None and chosen.resolve().parent != self.output_dir.resolve()
        if used and (self.resume_from is None or elsewhere):
            raise CheckpointError(
                f"There is a run in {self.output_dir} already: go on with it by --resume_from_checkpoint latest, or, "
                f"for a new one, {self._ways()}."
            )
        state = read_state(chosen) if chosen else finished
        if state is None:
            return self._require_no_later_stage(0)
        if not elsewhere:  # whoever goes on elsewhere means what differs, and is told of it
            self._require_same(state)
        step, wanted = state["step"], self.settings["max_train_steps"]
        if step > wanted:
            what_to_do = "" if elsewhere else f" For a run of {wanted} steps, {self._ways()}."
            raise CheckpointError(
                f"The run in {chosen.parent if chosen else self.output_dir} is at step {step} already, beyond "
                f"--max_train_steps {wanted}: nothing was trained.{what_to_do}"
            )
        self._require_no_later_stage(step)

    def end_if_finished(self) -> None:
        """After `check`: if this run is finished and kept no checkpoint, there is nothing to do.

        Raises:
            RunFinished: if it was finished at the last step that is asked for.
            CheckpointError: if it was finished before.
        """
        chosen, finished = self._found()
        if chosen is not None or finished is None:
            return
        step, wanted = finished["step"], self.settings["max_train_steps"]
        if step < wanted:
            raise CheckpointError(
                f"The run in {self.output_dir} was finished at step {step} and kept no checkpoint to go on from to "
                f"step {wanted}: {self._ways()}."
            )
        result = self.output_dir / finished["result"]
        raise RunFinished(f"{finished_words(self.output_dir, step)}\nIts result: {result}")

    def _found(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The checkpoint to go on from; and what is known of the folder's run if that is finished."""
        chosen = find_checkpoint(self.output_dir, self.resume_from) if self.resume_from else None
        run = read_run(self.output_dir)
        return chosen, None if run["finished"] is None else {**run, "step": run["finished"]}

    def _ways(self) -> str:
        return f"choose another --output_dir (of the scripts: OUTPUT_DIR), or remove {self.whole}"

    def _require_no_later_stage(self, step: int) -> None:
        """Raises CheckpointError if there is a later stage, which would stop, though this one has steps to go."""
        wanted = self.settings["max_train_steps"]
        if step < wanted and self.whole != self.output_dir and holds_run(self.whole):
            raise CheckpointError(
                f"There is a run in {self.whole} already, while its earlier stage in {self.output_dir} is at step "
                f"{step} of {wanted}: {self._ways()}."
            )

    def _require_same(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if a checkpoint, or a finished run, is of another training than this one."""
        changes = differences(state["settings"], self.settings, changeable=False)
        if state["step"] >= self.settings["max_train_steps"]:  # no step is left for what might change on the way
            before = {name: value for name, value in state["settings"].items() if name != "max_train_steps"}
            changes += differences(before, self.settings, changeable=True)
        if changes:
            lines = "".join(f"\n- {change}" for change in changes)
            raise CheckpointError(
                f"The run in {self.output_dir} is another training than this one:{lines}\nFor this one, {self._ways()}."
            )


def finished_words(output_dir: Path, step: int) -> str:
    return f"The run in {output_dir} is finished, at step {step}: nothing was trained."
