"""Writes checkpoints while the training goes on, and the model in it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Callable, Dict

import torch
from accelerate import Accelerator

from .checkpoints import (
    STATE_FILE,
    CheckpointError,
    finish_folder,
    newest_in_words,
    next_number,
    remove_old,
    start_folder,
    write_folder,
)

# Writes a model, whose weights come as a state dict, into a folder; what it returns is its name for that.
SaveModel = Callable[[torch.nn.Module, Dict[str, torch.Tensor], Path], Any]


class CheckpointWriter:
    """Writes `checkpoint-N` folders into `output_dir`, and keeps the newest `limit` of them (None: all)."""

    def __init__(self, accelerator: Accelerator, output_dir: Path, limit: int | None) -> None:
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.limit = limit
        # The training waits for the copy into the system's cache, 4 to 5 s for the 4.1 GiB of Stable Diffusion's
        # ControlNet and its averages, and not for the disk (benchmarks/checkpoint.py).
        self.background = ThreadPoolExecutor(1)
        self.publishing: Future | None = None

    def save(self, step: int, settings: dict[str, Any]) -> None:
        """Writes the state of all that the accelerator has prepared: all processes take part, the main one makes it
        appear. Raises CheckpointError.

        It appears when all of it is on the disk. For that the training does not wait; `finish` does.
        """
        # One at a time: two would share the disk, and the later might be whole first.
        self.finish()
        target = self.output_dir / f"checkpoint-{step}"
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            if self.accelerator.is_main_process:
                start_folder(target)
            # Nobody writes into a folder that the main process has not made yet, and it appears when all are through.
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                state = {"step": step, "written": next_number(self.output_dir), "settings": settings}
                (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
                self.publishing = self.background.submit(self._publish, temporary, target)
        except Exception as error:  # whatever stops the writing: the half-written folder goes, the reason is told
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._cannot_write(str(target), error) from error

    def finish(self) -> None:
        """Waits until the newest checkpoint is whole. Raises CheckpointError if it could not be written."""
        publishing, self.publishing = self.publishing, None
        try:
            if publishing is not None:
                publishing.result()
        except OSError as error:
            raise self._cannot_write("a checkpoint", error) from error
        self.accelerator.wait_for_everyone()

    def newest(self) -> str:
        """Which checkpoint is the newest that is whole, in words; waits for one that is being written."""
        if self.publishing is not None:
            wait([self.publishing])
        return newest_in_words(self.output_dir)

    def _publish(self, temporary: Path, target: Path) -> None:
        """In the background: flushes the checkpoint to the disk, lets it appear, and removes older ones."""
        try:
            finish_folder(temporary, target)
            remove_old(self.output_dir, self.limit)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _cannot_write(self, what: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"Cannot write {what}: {error}\nIs the disk full? {self.newest()}")


class ModelWriter:
    """Writes the model in training by `save_model`, under its name: into checkpoints too, where others can load it."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        save_model: SaveModel,
        load_model: Callable[[torch.nn.Module, Path], None],
        name: str,
    ) -> None:
        self.accelerator, self.model, self.name = accelerator, model, name
        self.save_model, self.load_model = save_model, load_model
        accelerator.register_save_state_pre_hook(self._save_hook)
        accelerator.register_load_state_pre_hook(self._load_hook)

    def gather(self, write: Callable[[torch.nn.Module, dict[str, torch.Tensor]], None]) -> None:
        """Calls `write` in the main process, with the unwrapped model and all its weights."""
        # All processes ask: with FSDP each has a part, and one alone would wait for the others for ever.
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            write(self.accelerator.unwrap_model(self.model), state_dict)
        self.accelerator.wait_for_everyone()

    def write(self, folder: Path, describe: Callable[[Path], None]) -> None:
        """Makes the folder, with the model and what `describe` adds to it. Raises CheckpointError."""

        def save(model: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
            def fill(temporary: Path) -> None:
                self.save_model(model, state_dict, temporary)
                describe(temporary)

            # Into a temporary folder, which then takes the result's name: it is whole, or not there.
            write_folder(folder, fill)

        self.gather(save)

    def save_into(self, model: torch.nn.Module, state_dict: dict[str, torch.Tensor], folder: Path) -> str:
        """Writes the model into a folder of its name in this one."""
        self.save_model(model, state_dict, folder / self.name)
        return self.name

    def _save_hook(self, models: list, weights: list, folder: str) -> None:
        state_dict = self.accelerator.get_state_dict(models[0])  # all processes: see gather
        if self.accelerator.is_main_process:
            self.save_into(self.accelerator.unwrap_model(models[0]), state_dict, Path(folder))
        weights.clear()  # the model is written: accelerate has nothing left to write

    def _load_hook(self, models: list, folder: str) -> None:
        while models:  # none with FSDP and DeepSpeed: there accelerate writes and reads the parts by itself
            self.load_model(self.accelerator.unwrap_model(models.pop()), Path(folder) / self.name)
