"""SIGTERM and Ctrl-C: a training stops after its step, with a checkpoint, on all processes at once."""

from __future__ import annotations

import atexit
import multiprocessing.util  # whose hook has to be there before ours: what is registered last runs first
import signal
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm


def leave_signals_to_main(worker: int) -> None:
    """In a process that loads data: Ctrl-C and a cluster's SIGTERM come to all of a training's processes, and the step
    that is to be finished wants its batches."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Python ends those that are left by SIGTERM, and would wait for ever for one that does not hear it."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class StopSignals:
    """Within a `with`, a first signal asks for a stop and a second one stops at once, by KeyboardInterrupt.

    Handlers are set only while there is something to save; what was there before is put back, come what may.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.came = False

    def __enter__(self) -> StopSignals:
        self.previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether any process got a signal: all stop at the same step, or none could write the checkpoint."""
        if self.accelerator.num_processes == 1:
            return self.came
        if self.came:
            # A launcher may tell one process only; the trigger is how the others hear of it.
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.came:
            raise KeyboardInterrupt  # asked twice: no more patience
        self.came = True
        tqdm.write(f"\nGot {signal.Signals(number).name}: saving a checkpoint after this step. Again to stop at once.")
