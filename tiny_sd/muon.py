"""The optimiser of the embedded base: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

from functools import partial
from typing import Any, Iterable

import torch


class MuonWithAdamW:
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for everything that is a matrix.

    Convolutions count as matrices of shape (out, in * height * width), as there; what is small or has one dimension is
    AdamW's. After 75 steps of the autoencoder, its error on held-out scenes was 0.24 in place of AdamW's 0.29, and what
    AdamW had reached by then Muon had after 45 (2026-11-29, one seed, 8 pieces a step).

    Updates are as large as AdamW's would be (Liu et al., 2025, https://arxiv.org/abs/2502.16982, eq. 4), so one
    learning rate serves both. Needs PyTorch 2.9.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> None:
        parameters = list(parameters)
        self.matrices = [p for p in parameters if p.dim() > 1 and min(len(p), p[0].numel()) >= 16]
        chosen = {id(p) for p in self.matrices}
        # The library's Muon takes two dimensions only: it is given other views of the same memory.
        self.views = [torch.nn.Parameter(_flat(p.data, p)) for p in self.matrices]
        others = [p for p in parameters if id(p) not in chosen]
        muon = partial(torch.optim.Muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        adamw = partial(torch.optim.AdamW, betas=(0.9, 0.99))
        parts = ((muon, self.views), (adamw, others))
        self.parts = [kind(its_own, lr=learning_rate) for kind, its_own in parts if its_own]

    def step(self, learning_rate: float) -> None:
        """One update at this rate, after which there are no gradients."""
        for view, parameter in zip(self.views, self.matrices):
            view.grad = _flat(parameter.grad, parameter)
        for part in self.parts:
            part.param_groups[0]["lr"] = learning_rate
            part.step()
            part.zero_grad()
        for parameter in self.matrices:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)


def _flat(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A convolution's (out, in, height, width) as (out, in * height * width), in its parameter's order in memory."""
    if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)
