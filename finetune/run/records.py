"""What a training says of itself: its figures as it goes, what it was made with, and the best model so far."""

from __future__ import annotations

import functools
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..devices import peak_bytes
from .checkpoints import write_file, write_folder
from .settings import keep, read_run

try:
    import resource
except ImportError:  # on Windows: there the memory of a process is not told
    resource = None

STATS_FILE, OPTIONS_FILE = "stats.jsonl", "training_options.json"
BEST, HELD_OUT_LOSS = "best", "validation/loss"
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "bitsandbytes")


class Record:
    """A training's figures as it goes, a line each time in `stats.jsonl`, and `training_options.json` beside it.

    Args:
        folder: where the two files are.
        samples_per_step: of all processes.
        last_step: the step that the training ends with.
        device: whose memory is told; on a CPU it is the most that the process ever had, libraries and all.
        options: all flags by their names, and whatever else is to be kept.
        writes: whether this of several processes is the one that writes.
    """

    def __init__(
        self, folder: Path, samples_per_step: int, last_step: int, device: torch.device, options: dict, writes: bool
    ) -> None:
        self.folder, self.samples_per_step, self.last_step = folder, samples_per_step, last_step
        self.device, self.options, self.writes = device, options, writes
        self.begin(0, keep_lines=True)

    def begin(self, step: int, keep_lines: bool = False) -> None:
        """Starts the clocks at this step. Lines of later ones go: a run may go on from an older checkpoint."""
        self.first_step = self.marked_step = step
        self.started = self.mark = time.monotonic()
        # monotonic: a clock that is set right in the night would make a step take an hour, or less than nothing.
        self.paused = self.busy = self.seconds_before = 0.0
        if keep_lines or not self.writes:
            return
        lines = [line for line in read_stats(self.folder) if line["step"] <= step]
        self.seconds_before = max((line.get("seconds", 0.0) for line in lines), default=0.0)
        write_file(self.folder / STATS_FILE, "".join(json.dumps(line) + "\n" for line in lines))
        self.keep_options(step)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done within it, such as drawing and saving, does not count as training."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - start

    @property
    def seconds(self) -> float:
        """Of the whole training, also before it was stopped and gone on with."""
        return self.seconds_before + time.monotonic() - self.started

    def figures(self, step: int) -> dict[str, float]:
        """Speed since the last call, memory so far, time so far and to go at the speed of this process."""
        now = time.monotonic()
        busy, steps = now - self.mark - self.paused, step - self.marked_step
        self.mark, self.marked_step, self.paused = now, step, 0.0
        self.busy += busy
        # By the clock, with drawing and saving in it: that is how long one waits.
        left = (self.last_step - step) * (now - self.started) / max(step - self.first_step, 1)
        peak = peak_memory(self.device)
        return {
            "images_per_second": steps * self.samples_per_step / max(busy, 1e-9),
            **({} if peak is None else {"peak_memory_gib": peak / 2**30}),
            "seconds": self.seconds,
            "seconds_left": left,
        }

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            with (self.folder / STATS_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def keep_options(self, step: int) -> None:
        """With which flags, versions, code, data and for how long it was trained."""
        if self.writes:
            made_with = {"versions": versions(), "commit": commit(), "step": step, "seconds": round(self.seconds, 1)}
            text = json.dumps({**self.options, **made_with}, indent=2, default=str)
            write_file(self.folder / OPTIONS_FILE, text + "\n")

    def summary(self, step: int) -> str:
        """What the training came to, for people."""
        peak, made = peak_memory(self.device), (step - self.first_step) * self.samples_per_step
        memory = "" if peak is None else f", {peak / 2**30:.2f} GiB of memory at most"
        return (
            f"{step:,} steps of {self.samples_per_step} samples in {duration(self.seconds)}; "
            f"{made / max(self.busy, 1e-9):.1f} images a second{memory}. All figures: {self.folder / STATS_FILE}"
        )


class Best:
    """The best model of a training so far, in the folder `best` with a `run.json` of its own.

    Args:
        output_dir: the training's folder.
        by: the figure that decides; a loss is good when it is low, anything else when it is high. None: nothing does.
        of: what it was measured on, where that may differ.
    """

    def __init__(self, output_dir: Path, by: str | None, of: str | None) -> None:
        self.folder, self.by, self.of = output_dir / BEST, by, of

    def beaten_by(self, figures: dict[str, float]) -> bool:
        """Whether these are better than those of what is there."""
        best = read_run(self.folder)
        # What is no number no other is below or above: it would stay the best for ever.
        if not math.isfinite(figures.get(self.by, math.nan)):
            return False
        # Figures of another kind or of other pictures cannot be compared: what comes first counts then.
        if (best.get("by"), best.get("of")) != (self.by, self.of):
            return True
        better = figures[self.by] - best["value"]
        return better < 0 if self.by == HELD_OUT_LOSS else better > 0

    def keep(self, figures: dict[str, float], step: int, settings: dict[str, Any], save: Callable[[Path], str]) -> None:
        """`save` writes the model and returns its name. Raises CheckpointError; then the one before is still there."""

        def write(folder: Path) -> None:
            keep(folder, settings, step, save(folder), by=self.by, of=self.of, value=figures[self.by])

        write_folder(self.folder, write)

    @staticmethod
    def forget_later(output_dir: Path, step: int) -> None:
        """Removes a best model of a later step than the one that a run goes on from: another training made it."""
        if (read_run(output_dir / BEST)["finished"] or 0) > step:
            shutil.rmtree(output_dir / BEST)

    @staticmethod
    def in_words(output_dir: Path) -> list[str]:
        """A line that says what is kept; none if nothing is."""
        best = read_run(output_dir / BEST)
        if "by" not in best:
            return []
        return [f"The best by {best['by']}, {best['value']:.5f} at step {best['finished']}: {output_dir / BEST}"]


def read_stats(folder: Path) -> list[dict[str, Any]]:
    """The lines of `stats.jsonl`, without one that a killed run wrote in part; none where there is no such file."""
    file = folder / STATS_FILE
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.1f} s"


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that tensors held on the device; on a CPU, the most that the process did. None: not known."""
    if device.type != "cpu" or resource is None:
        return peak_bytes(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, Linux in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


@functools.lru_cache(maxsize=None)
def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not all are needed
    return found


@functools.lru_cache(maxsize=None)
def commit() -> str | None:
    """The commit of this code, with "-dirty" if it was changed; None outside a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # there is no git, or it takes too long
        return None
    return run.stdout.decode().strip() or None


def log_images(accelerator: Accelerator, images: Sequence[Image.Image], step: int) -> None:
    """Shows pictures in the trackers: TensorBoard takes numbers (number, 3, height, width) in 0..1, wandb pictures."""
    for tracker in accelerator.trackers:
        pictures = list(images)
        if tracker.name == "tensorboard":
            pictures = np.stack([np.array(image) for image in images]).transpose(0, 3, 1, 2) / np.float32(255)
        tracker.log_images({"validation": pictures}, step=step)
