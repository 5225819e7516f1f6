"""What the ControlNet adds, made visible: the residuals of TODO (3), how large they are in every step and where."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

MAPS = 4  # steps, from the first to the last, of which every residual is shown as a map


@dataclass
class Residuals:
    """What was heard: for each step its timestep, and of each residual its size (root mean square) and its map
    (height, width), the same over the channels. The last residual is the mid block's."""

    timesteps: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sizes: list[list[float]] = field(default_factory=list)
    maps: list[list[np.ndarray]] = field(default_factory=list)

    def add(self, timestep: Any, residuals: Sequence[torch.Tensor]) -> None:
        # With guidance the batch's second half is the prompt's; the other is that of the negative prompt.
        seen = [residual[-1].detach().float().cpu() for residual in residuals]
        self.timesteps.append(int(torch.as_tensor(timestep).flatten()[0]))
        self.shapes = [tuple(residual.shape) for residual in seen]
        self.sizes.append([float(residual.square().mean().sqrt()) for residual in seen])
        self.maps.append([residual.square().mean(0).sqrt().numpy() for residual in seen])

    @property
    def names(self) -> list[str]:
        """Which skip connection each is for, counted from the first, with its size."""
        numbers = [str(i + 1) for i in range(len(self.shapes) - 1)] + ["mid block"]
        return [f"{name}: {c} x {h} x {w}" for name, (c, h, w) in zip(numbers, self.shapes)]

    @contextmanager
    def listening(self, pipeline: Any) -> Iterator[None]:
        """Within this context the pipeline's ControlNet is listened to."""

        def hear(net: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            down, mid = output
            self.add(arguments[1], [*down, mid])

        handle = pipeline.controlnet.register_forward_hook(hear)
        try:
            yield
        finally:
            handle.remove()


def plot(heard: Residuals) -> Image.Image:
    """The sizes over the timesteps, a line for each residual, from the finest (dark) to the mid block's (light)."""
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.92, len(heard.shapes)))
    for name, shade, line in zip(heard.names, shades, np.array(heard.sizes).T):
        axis.plot(heard.timesteps, line, "o-", color=shade, label=name, markersize=3, linewidth=1.5)
    axis.set_xlim(1020, -20)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("timestep: from noise (left) to the picture (right)")
    axis.set_ylabel("size (root mean square)")
    axis.grid(alpha=0.25)
    axis.legend(title="residual: channels x height x width", fontsize=7, title_fontsize=7,
                loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # fmt: skip
    return as_image(figure)


def map_sheet(heard: Residuals) -> Image.Image:
    """The residuals' maps in some steps, a row each: bright is much, each map beside its own largest value."""
    rows = sorted({round(i * (len(heard.maps) - 1) / (MAPS - 1)) for i in range(MAPS)})
    columns = len(heard.shapes)
    figure = Figure(figsize=(0.3 + 1.15 * columns, 0.5 + 1.15 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, step in enumerate(rows):
        for axis, residual, name in zip(axes[row], heard.maps[step], heard.names):
            axis.imshow(residual, cmap="viridis", vmin=0)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name.replace(": ", "\n"), fontsize=7)
        axes[row][0].set_ylabel(f"t = {heard.timesteps[step]}", fontsize=8)
    return as_image(figure)


def as_image(figure: Figure) -> Image.Image:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream)
