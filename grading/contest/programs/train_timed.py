"""Trains one stage of a recipe with Task 1's own train.py, takes its time, and draws the held-out conditions meanwhile.

    cd task_1_controlnet && python ../grading/contest/programs/train_timed.py '{"journal": ...}' --resolution 64 ...
    cd task_1_controlnet && python ../grading/contest/programs/train_timed.py --parse '[["--resolution=64"]]'

The contest starts it, with train.py's flags behind its own settings; --parse only looks whether they are right ones. It
uses the code of Task 1, in whose folder it must start. What counts is the training: loading, encoding and steps. What
does not: drawing and scoring, writing checkpoints, and after an interruption getting to where it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil

sys.path.insert(0, os.getcwd())

import train
from evaluate import held_out_samples
from finetune.objective import NonFiniteLossError
from finetune.run.checkpoints import write_file
from finetune.setup import fail_clearly
from grading.sandbox.limits import Account

TICK_SECONDS = 1.0


class Clock:
    """Seconds of this process's own, without what it waited for processors that others had, while it is running."""

    def __init__(self, seconds: float) -> None:
        self.before, self.account, self.start = seconds, None, 0.0
        self.process, self.lock = psutil.Process(), threading.Lock()

    @property
    def running(self) -> bool:
        return self.account is not None

    def go(self) -> None:
        with self.lock:
            self.account, self.start = Account(), time.perf_counter()
            self.account.usage.add(self.process)

    def look(self) -> float:
        """The seconds up to now. Looked at often, it is exact about who waited."""
        with self.lock:
            if self.account is None:
                return self.before
            self.account.look([self.process], time.perf_counter() - self.start)
            return self.before + self.account.own_seconds

    def stop(self) -> None:
        seconds = self.look()
        with self.lock:
            self.before, self.account = seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        was_running = self.running
        self.stop()
        try:
            yield
        finally:
            if was_running:
                self.go()


class Ended(Exception):
    """The stage has come to its end; the message is a word that the journal keeps."""


class Stage:
    """One stage's journal and clock, and what whoever started this program is told.

    Settings: `journal` is the file, `pipe` a descriptor to tell by, `target` the IoU, `conditions` how many are drawn,
    `gap` the seconds between two checks, `guidance_scale`, and `seconds` how long the stage may train.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.file = Path(settings["journal"])
        empty = {"seconds": {}, "checks": [], "end": None}
        self.journal = json.loads(self.file.read_text()) if self.file.is_file() else empty
        self.clock = Clock(max(self.journal["seconds"].values(), default=0.0))
        self.step, self.steps, self.last_check, self.asked = 0, 0, 0.0, False
        self.over = threading.Event()

    def go_on_from(self, step: int) -> bool:
        """Sets journal and clock back to this step's checkpoint; whether its check was made."""
        self.clock.before = self.journal["seconds"][str(step)]
        self.journal["seconds"] = {at: s for at, s in self.journal["seconds"].items() if int(at) <= step}
        self.journal["checks"] = [check for check in self.journal["checks"] if check["step"] <= step]
        self.last_check = self.clock.before
        return step in [check["step"] for check in self.journal["checks"]]

    def keep(self) -> None:
        write_file(self.file, json.dumps(self.journal) + "\n")

    def tell(self) -> None:
        """A line for the progress bar. Whoever reads it has gone if this fails: then it is time to stop."""
        iou = self.journal["checks"][-1]["iou"] if self.journal["checks"] else None
        news = {"step": self.step, "steps": self.steps, "seconds": self.clock.look(), "iou": iou}
        try:
            os.write(self.settings["pipe"], (json.dumps(news) + "\n").encode())
        except OSError:
            self.ask_to_stop()

    def ask_to_stop(self) -> None:
        if not self.asked:
            self.asked = True
            os.kill(os.getpid(), signal.SIGINT)

    @property
    def out_of_time(self) -> bool:
        return self.clock.look() > self.settings["seconds"]

    def tick(self) -> None:
        """Runs beside the training, as encoding the data can take longer than all the time there is."""
        while not self.over.wait(TICK_SECONDS):
            self.tell()
            if self.out_of_time:
                self.ask_to_stop()

    def checked(self, step: int, iou: float) -> None:
        """Keeps what a check found; raises Ended if that is enough."""
        self.last_check = self.clock.look()
        self.journal["checks"].append({"step": step, "seconds": self.last_check, "iou": iou})
        self.keep()
        self.tell()
        if iou >= self.settings["target"]:
            raise Ended("reached")

    def is_check_due(self) -> bool:
        return self.clock.look() - self.last_check >= self.settings["gap"]


def timed(stage: Stage) -> type[train.Training]:
    """train.py's training loop, with its time taken: checkpoints and checks come by the clock, not by the step."""

    class Timed(train.Training):
        def run(self, compute_loss: Callable, validate: Callable, validation_steps: int) -> bool:
            stage.step, stage.steps = self.step, self.plan.max_train_steps
            if self.step and not stage.go_on_from(self.step):
                validate(self.step)
            done = super().run(compute_loss, validate, validation_steps)
            stage.clock.stop()
            return done

        def keep_best(self, found: dict[str, float]) -> None:
            """Nothing: checks are many here, and a model on the disk at each would take the recipe's time."""

        def optimization_step(self, batches: Iterator[Any], compute_loss: Callable[[Any], Any]) -> None:
            if not stage.clock.running:  # goes on: what went before was counted then
                stage.clock.go()
            super().optimization_step(batches, compute_loss)
            stage.step = self.step + 1
            self.due = stage.is_check_due()

        def is_due(self, every: int) -> bool:
            return self.due or self.step == self.plan.max_train_steps

        def save_checkpoint(self) -> None:
            with stage.clock.paused():
                stage.journal["seconds"][str(self.step)] = stage.clock.look()
                stage.keep()  # first: a checkpoint whose time is not known is worth nothing
                super().save_checkpoint()
                self.finish_checkpoint()

    return Timed


def take_over(stage: Stage) -> None:
    """Gives train.py the timed loop, and the held-out conditions to draw in place of the five of the test."""
    conditions, prompts, _ = held_out_samples(stage.settings["conditions"])
    draw_and_score = train.validate

    def check(step: int, *rest: Any) -> dict[str, float]:
        with stage.clock.paused():
            found = draw_and_score(step, *rest)
        stage.checked(step, found.get("validation/mean_iou", 0.0))  # 0: what was drawn is no picture
        return found

    train.load_test_data = lambda: (conditions, prompts)
    train.validate = check
    train.Training = timed(stage)


def run_stage(stage: Stage) -> str:
    """Trains, and says how it ended."""
    if not stage.journal["seconds"]:
        stage.clock.go()
    # It is how a stage is ended, and whoever starts a contest in the background, as by nohup, has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=stage.tick, daemon=True).start()
    try:
        with fail_clearly_but_told():
            train.main()
    except Ended as ended:
        return str(ended)
    except KeyboardInterrupt:
        return "time" if stage.out_of_time else "stopped"
    finally:
        stage.over.set()
        signal.signal(signal.SIGINT, before)
    if stage.step < stage.steps:
        return "time" if stage.out_of_time else "stopped"
    return "steps"


@contextmanager
def fail_clearly_but_told() -> Iterator[None]:
    """A loss that is not finite is what the recipe came to; all other errors end the program."""
    with fail_clearly():
        try:
            yield
        except NonFiniteLossError:
            raise Ended("diverged") from None


def parse_only(stages: list[list[str]]) -> None:
    """Lets train.py's parser read each stage's flags; it ends the program with a message for a wrong one."""
    for flags in stages:
        sys.argv = ["train.py", *flags]
        train.parse_args()


def main() -> None:
    if sys.argv[1] == "--parse":
        return parse_only(json.loads(sys.argv[2]))
    stage = Stage(json.loads(sys.argv[1]))
    sys.argv = ["train.py", *sys.argv[2:]]  # the run is train.py's, by name too
    take_over(stage)
    how = run_stage(stage)
    stage.clock.stop()
    stage.journal["end"] = None if how == "stopped" else how
    stage.keep()


if __name__ == "__main__":
    main()
