"""A training of the embedded base that takes hours and may be killed at any time: it goes on where it was saved."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from muon import MuonWithAdamW

SAVE_EVERY = 250


class LongRun:
    """A model's trainable parameters, their moving average, and the optimiser, kept in one file.

    The learning rate is constant, then falls to nothing over the last `decay` of the steps: how many there are to be
    can be decided late (Hägele et al., 2024, https://arxiv.org/abs/2405.18392).

    Args:
        model: on its device; only what requires a gradient is trained and kept.
        file: where the state is kept; what is there already is gone on with.
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
    ) -> None:
        self.learning_rate, self.steps, self.file = learning_rate, steps, file
        self.decay, self.average_over, self.max_grad_norm = decay, average_over, max_grad_norm
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = MuonWithAdamW(self.trained, learning_rate)
        self.average = [parameter.detach().clone() for parameter in self.trained]
        self.step = 0
        if file.is_file():
            self.load()

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def load(self) -> None:
        state = torch.load(self.file, map_location=self.trained[0].device)
        with torch.no_grad():
            for name in ("trained", "average"):
                for tensor, stored in zip(getattr(self, name), state[name]):
                    tensor.copy_(stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"Going on from step {self.step} of {self.steps} in {self.file}.")

    def save(self) -> None:
        """Writes the file; it is whole or as it was before."""
        state = {"trained": self.trained, "average": self.average, "optimizer": self.optimizer.state_dict()}
        temporary = self.file.with_suffix(".tmp")
        torch.save({**state, "step": self.step}, temporary)
        os.replace(temporary, self.file)

    def start_step(self) -> None:
        """Seeds what the next step draws at random: a run that goes on draws what it would have drawn."""
        torch.manual_seed(self.step)

    def update(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        left = 1 - self.step / self.steps
        rate = self.learning_rate * min(1, (self.step + 1) / 100, left / self.decay)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.optimizer.step(rate)
        self.step += 1
        decay = min(1 - 1 / self.average_over, self.step / (self.step + 9))
        torch._foreach_lerp_(self.average, self.trained, 1 - decay)
        if self.step % SAVE_EVERY == 0 or self.done:
            self.save()

    def exchange_average(self) -> None:
        """Puts the moving average into the model; called again, takes it out."""
        for parameter, average in zip(self.trained, self.average):
            parameter.data, average.data = average.data, parameter.data
