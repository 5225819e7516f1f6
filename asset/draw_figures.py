"""Draws the README's figures from real runs: `make demo` first, then `python asset/draw_figures.py`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "task_1_controlnet" / "data"
RUN = ROOT / "runs" / "demo"


def demo() -> None:
    """asset/demo.png: the five test conditions above what was drawn for them, with prompt and score."""
    prompts = json.loads((DATA / "test_prompts.json").read_text())
    scores = json.loads((RUN / "metrics.json").read_text())["test_scores"]
    figure, axes = plt.subplots(2, len(prompts), figsize=(2.2 * len(prompts), 5.2), constrained_layout=True)
    for column, (key, prompt) in enumerate(prompts.items()):
        for row, path in enumerate((DATA / "test_conditions" / f"{key}.png", RUN / "generated" / f"{key}.png")):
            axis = axes[row][column]
            axis.imshow(Image.open(path))
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0][column].set_title("\n".join(textwrap.wrap(prompt, 24)), fontsize=9)
        axes[1][column].set_xlabel(f"IoU {scores[column]['iou']:.3f}", fontsize=10)
    axes[0][0].set_ylabel("condition", fontsize=10)
    axes[1][0].set_ylabel("generated", fontsize=10)
    figure.savefig(Path(__file__).with_name("demo.png"), dpi=110)


if __name__ == "__main__":
    demo()
