"""A training of the embedded base that takes hours and may be killed at any time: it goes on where it was saved."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable

import torch

from tiny_sd.training.muon import MuonWithAdamW
from tiny_sd.training.together import as_the_first, average_gradients, number_of_processes, rank, wait_for_all

SAVE_AFTER = 180  # seconds


def kept(file: Path, make: Callable[[], Any], made_of: Any) -> Any:
    """What `make` returns, made once: a run that goes on finds it in `file`, unless it was made of something else."""
    there = file.is_file() and torch.load(str(file), weights_only=True, mmap=True)["made_of"] == made_of
    if rank() == 0 and not there:
        temporary = file.with_suffix(".tmp")
        torch.save({"made_of": made_of, "content": make()}, temporary)
        temporary.replace(file)
    wait_for_all()
    return torch.load(str(file), weights_only=True, mmap=True)["content"]


class LongRun:
    """A model's trainable parameters, their moving average, and the optimiser, kept in one file.

    The learning rate is constant, then falls to nothing over the last `decay` of the steps: how many there are to be
    can be decided late (Hägele et al., 2024, https://arxiv.org/abs/2405.18392).

    Args:
        model: on its device; only what requires a gradient is trained and kept.
        file: where the state is kept; what is there already is gone on with.
        seconds: stop after so much time if that comes before the last step: on a GPU that is lent, time is what is
            known. The first step, in which PyTorch may compile, does not count.
        average_over: steps after which an old weight's part in the moving average has fallen to 1 / e.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        learning_rate: float,
        steps: int,
        file: Path,
        decay: float = 0.4,
        average_over: int = 1000,
        max_grad_norm: float = 1.0,
        seconds: float | None = None,
    ) -> None:
        self.learning_rate, self.steps, self.file = learning_rate, steps, file
        self.decay, self.average_over, self.max_grad_norm = decay, average_over, max_grad_norm
        self.seconds, self.spent, self.clock, self.saved = seconds, 0.0, None, time.monotonic()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = MuonWithAdamW(self.trained, learning_rate)
        self.average = [parameter.detach().clone() for parameter in self.trained]
        self.step = 0
        if file.is_file():
            self.load()

    @property
    def left(self) -> float:
        """The share of the run that is still to come, 1 to 0."""
        steps = self.step / self.steps
        return 1 - min(1.0, max(steps, self.spent / self.seconds) if self.seconds else steps)

    @property
    def done(self) -> bool:
        return self.left == 0

    def load(self) -> None:
        state = torch.load(self.file, map_location=self.trained[0].device)
        with torch.no_grad():
            for name in ("trained", "average"):
                for tensor, stored in zip(getattr(self, name), state[name]):
                    tensor.copy_(stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = state["step"], state["spent"]
        print(f"Going on from step {self.step} of {self.steps} in {self.file}.")

    def save(self) -> None:
        """Writes the file; it is whole or as it was before."""
        state = {"trained": self.trained, "average": self.average, "optimizer": self.optimizer.state_dict()}
        temporary = self.file.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "spent": self.spent}, temporary)
        os.replace(temporary, self.file)
        self.saved = time.monotonic()

    def start_step(self) -> None:
        """Seeds what the next step draws at random: a run that goes on draws what it would have drawn."""
        torch.manual_seed(self.step * number_of_processes() + rank())

    def update(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        rate = self.learning_rate * min(1, (self.step + 1) / 100, self.left / self.decay)
        loss.backward()
        average_gradients(self.trained)
        torch.nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.optimizer.step(rate)
        self.step += 1
        decay = min(1 - 1 / self.average_over, self.step / (self.step + 9))
        torch._foreach_lerp_(self.average, self.trained, 1 - decay)
        now = time.monotonic()
        self.spent = as_the_first(self.spent + (now - self.clock if self.clock else 0))
        self.clock = now
        if rank() == 0 and (self.done or now > self.saved + SAVE_AFTER):
            self.save()

    def exchange_average(self) -> None:
        """Puts the moving average into the model; called again, takes it out."""
        for parameter, average in zip(self.trained, self.average):
            parameter.data, average.data = average.data, parameter.data
