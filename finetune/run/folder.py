"""A run and its folder: no folder is given to another training, and no old result passes for new."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, find_checkpoint, read_state
from .locks import lock
from .settings import BEFORE, RUN_FILE, data_identity, differences, holds_another, known_as, read_run, settings_of


class RunFinished(Exception):
    """Nothing is left to train; the message says so, and where the result is."""


def holds_run(folder: Path) -> bool:
    """Whether there is something to go on from, or a result."""
    return find_checkpoint(folder, "latest") is not None or read_run(folder)["finished"] is not None


class Run:
    """A training as its flags describe it, and the folder that it is to have."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output_dir: Path = args.output_dir
        self.resume_from: str | None = args.resume_from_checkpoint
        self.settings = settings_of(args)

    def add_data(self, name: str | Path, data: Any, role: str = "data") -> None:
        """What is trained on; `role` is a key of WORDS."""
        self.settings[role] = known_as(f"{len(data)} samples of {name}", data_identity(data))

    def check(self) -> None:
        """Takes the folder: to be called before anything is written and before any long work; again if more is known.

        Raises:
            CheckpointError: if another training is running in the folder; if it holds a run, and going on with that is
                not what was asked for; if it is another program's; or if there is no such checkpoint.
        """
        # First: two that look at a folder at the same time would both find it free.
        lock(self.output_dir)
        if holds_another(self.output_dir):
            raise CheckpointError(
                f"{self.output_dir / RUN_FILE} is no run of this program, and would be replaced: {self._ways()}."
            )
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
            return
        if elsewhere:  # whoever goes on elsewhere means what differs, and is told of it
            self._require_fitting_averages(chosen, state)
        else:
            self._require_same(state)
        step, wanted = state["step"], self.settings["max_train_steps"]
        if step > wanted:
            what_to_do = "" if elsewhere else f" For a run of {wanted} steps, {self._ways()}."
            raise CheckpointError(
                f"The run in {chosen.parent if chosen else self.output_dir} is at step {step} already, beyond "
                f"--max_train_steps {wanted}: nothing was trained.{what_to_do}"
            )

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
        if not result.exists():
            raise CheckpointError(
                f"The run in {self.output_dir} was finished at step {step}, but {result} is gone, and there is no "
                f"checkpoint to make it from: {self._ways()}."
            )
        raise RunFinished(f"{finished_words(self.output_dir, step)}\nIts result: {result}")

    def _found(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The checkpoint to go on from; and what is known of the folder's run if that is finished.

        One from before the end of a finished run, which is all that is asked for, is none to go on from.
        """
        chosen = find_checkpoint(self.output_dir, self.resume_from) if self.resume_from else None
        run = read_run(self.output_dir)
        if run["finished"] is None:
            return chosen, None
        wanted, result = self.settings["max_train_steps"], self.output_dir / run["result"]
        if chosen and self.resume_from == "latest" and wanted <= run["finished"] and result.exists():
            chosen = None if read_state(chosen)["step"] < run["finished"] else chosen
        return chosen, {**run, "step": run["finished"]}

    def _ways(self) -> str:
        return f"choose another --output_dir (of the scripts: OUTPUT_DIR), or remove {self.output_dir}"

    def _require_fitting_averages(self, chosen: Path, state: dict[str, Any]) -> None:
        """Raises CheckpointError if only one of a checkpoint's optimiser and this one's has new layers in a group of
        their own, or keeps its averages in 8 bits."""
        settings = [{**BEFORE, **one} for one in (state["settings"], self.settings)]
        for name, kind in (("new_layers_lr_ratio", lambda ratio: ratio == 1.0), ("use_8bit_adam", bool)):
            was, now = (one.get(name) for one in settings)
            if kind(was) != kind(now):
                was, now = (("no", "yes")[value] if isinstance(value, bool) else f"{value:g}" for value in (was, now))
                model = chosen / "controlnet"
                instead = f"begin with its weights alone by --controlnet_model_name_or_path {model} in place of"
                raise CheckpointError(
                    f"{chosen} was trained with --{name} {was}, and the optimiser's averages in it do not fit {now}: "
                    f"give --{name} {was}, or {instead if model.is_dir() else 'leave away'} --resume_from_checkpoint."
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
