"""The optimiser of the embedded base: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Iterable

import torch

from tiny_sd.training.together import shared_out

MOMENTUM = 0.95


class MuonWithAdamW:
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for everything that is a matrix.

    Convolutions count as matrices of shape (out, in * height * width), as there; what is small or has one dimension is
    AdamW's. After 75 steps of the autoencoder, its error on held-out scenes was 0.24 in place of AdamW's 0.29, and what
    AdamW had reached by then Muon had after 45 (2026-11-29, one seed, 8 pieces a step).

    Updates are as large as AdamW's would be (Liu et al., 2025, https://arxiv.org/abs/2502.16982, eq. 4), so one
    learning rate serves both. The same steps as `torch.optim.Muon`, but all matrices of a shape in one: the library's
    takes them one by one, some thirty small kernels each, which on a GPU is longer than the model takes.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> None:
        parameters = list(parameters)
        matrices = [p for p in parameters if p.dim() > 1 and min(len(p), p[0].numel()) >= 16]
        chosen = {id(p) for p in matrices}
        alike = defaultdict(list)
        for parameter in matrices:
            alike[len(parameter), parameter[0].numel()].append(parameter)
        self.groups = list(alike.values())
        self.momenta = [torch.stack([torch.zeros_like(_flat(p.detach(), p)) for p in group]) for group in self.groups]
        others = [p for p in parameters if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99)) if others else None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update at this rate, after which there are no gradients."""
        directions = []
        for group, momenta in zip(self.groups, self.momenta):
            gradients = torch.stack([_flat(p.grad, p) for p in group])
            momenta.lerp_(gradients, 1 - MOMENTUM)
            directions.append(gradients.lerp_(momenta, MOMENTUM))
        for group, updates in zip(self.groups, shared_out(orthogonal, directions, torch.bfloat16)):
            rate = learning_rate * 0.2 * max(updates.shape[1:]) ** 0.5
            torch._foreach_add_([_flat(p.data, p) for p in group], list(updates.to(group[0].dtype)), alpha=-rate)
            for parameter in group:
                parameter.grad = None
        if self.adamw:
            self.adamw.param_groups[0]["lr"] = learning_rate
            self.adamw.step()
            self.adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adamw": self.adamw and self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momenta = state["momenta"]
        if self.adamw:
            self.adamw.load_state_dict(state["adamw"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (n, rows, columns) with singular values made alike, in bfloat16: Jordan et al.'s Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


def _flat(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A convolution's (out, in, height, width) as (out, in * height * width), in its parameter's order in memory."""
    if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)
