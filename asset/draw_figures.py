"""Draws the pages' figures from real runs: `python asset/draw_figures.py` draws those whose runs are there.

| figure | needs |
|---|---|
| demo.png | `make demo` |
| fill50k.png, lora.png | nothing |
| style.png, subject.png | the two trainings of Task 2 on the embedded base, each with its evaluation |
| together.png | Task 1-1 and the style's training, both on the embedded base |
| canny.png | Task 1-1 on the embedded base, with its evaluation |
| page.jpg | another program: `PAGE_PICTURE=asset/page.jpg python -m kit test tests/repository/test_page_browser.py` |
| speed.png | `python benchmarks/train_step.py --output runs/train_step.json` |
| time_to_quality.png | `python benchmarks/time_to_quality.py` |
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Sequence

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RUNS = ROOT / "runs"
METRICS = "metrics.json"
TASK_1, TASK_2 = ROOT / "task_1_controlnet", ROOT / "task_2_lora"


def sheet(
    name: str,
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str],
    titles: Sequence[str],
    notes: Sequence[str] | None = None,
) -> None:
    """Pictures in rows with a label each, a title above every column and a note below; rows may be shorter."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.2 * columns, 2.2 * len(rows) + 0.8), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for row, (images, label) in enumerate(zip(rows, labels)):
        axes[row][0].set_ylabel(label, fontsize=10)
        for axis, image in zip(axes[row], images):
            axis.imshow(image)
    for axis, title in zip(axes[0], titles):
        axis.set_title("\n".join(textwrap.wrap(title, 24)), fontsize=9)
    for axis, note in zip(axes[-1], notes or []):
        axis.set_xlabel(note, fontsize=10)
    figure.savefig(HERE / name, dpi=100)  # prints at 110 are more than a MiB
    plt.close(figure)


def open_all(folder: Path, names: Sequence[str]) -> list[Image.Image]:
    return [Image.open(folder / f"{name}.png") for name in names]


def demo() -> None:
    """The five test conditions above what was drawn for them, with prompt and score."""
    prompts = json.loads((TASK_1 / "data" / "test_prompts.json").read_text())
    scores = json.loads((RUNS / "demo" / "metrics.json").read_text())["test_scores"]
    conditions = open_all(TASK_1 / "data" / "test_conditions", list(prompts))
    rows = [conditions, open_all(RUNS / "demo" / "generated", list(prompts))]
    notes = [f"IoU {score['iou']:.3f}" for score in scores]
    sheet("demo.png", rows, ["condition", "generated"], list(prompts.values()), notes)


def fill50k() -> None:
    """Five samples of the rendered Fill50K: condition, image and caption."""
    sys.path.insert(0, str(TASK_1))
    from fill50k import RenderedFill50K

    data = RenderedFill50K("train", 5)
    samples = [data[i] for i in range(5)]
    rows = [[sample[key] for sample in samples] for key in ("conditioning_image", "image")]
    sheet("fill50k.png", rows, ["condition", "image"], [sample["text"] for sample in samples])


def lora() -> None:
    """How a LoRA adds to a weight matrix."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    frozen, trained = "#c9d7ee", "#f6c9a8"
    axis.add_patch(Rectangle((0.6, 1.2), 2.4, 2.4, facecolor=frozen, edgecolor="black"))
    axis.text(1.8, 2.4, "$W_0$\n$d \\times k$, frozen", ha="center", va="center", fontsize=11)
    axis.add_patch(Polygon([(4.2, 1.2), (6.6, 1.2), (5.8, 2.3), (5.0, 2.3)], facecolor=trained, edgecolor="black"))
    axis.text(5.4, 1.7, "$A$: $r \\times k$", ha="center", va="center", fontsize=11)
    axis.add_patch(Polygon([(5.0, 2.5), (5.8, 2.5), (6.6, 3.6), (4.2, 3.6)], facecolor=trained, edgecolor="black"))
    axis.text(5.4, 3.1, "$B$: $d \\times r$", ha="center", va="center", fontsize=11)
    axis.text(6.5, 2.4, "trained;\n$B$ starts at 0", ha="left", va="center", fontsize=10)
    axis.text(3.6, 0.1, "$x$", ha="center", va="center", fontsize=13)
    axis.text(3.6, 4.75, "$h = W_0 x + \\frac{\\alpha}{r} B A x$", ha="center", va="center", fontsize=13)
    axis.text(3.6, 4.05, "+", ha="center", va="center", fontsize=15)
    for start, end in (
        ((3.5, 0.3), (1.8, 1.15)), ((3.7, 0.3), (5.4, 1.15)), ((1.8, 3.65), (3.4, 4.0)), ((5.4, 3.65), (3.8, 4.0)),
    ):  # fmt: skip
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="black"))
    axis.set_xlim(0, 8.2)
    axis.set_ylim(-0.2, 5.1)
    axis.axis("off")
    figure.savefig(HERE / "lora.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def taught(name: str, training: Path, run: Path) -> None:
    """What a LoRA learnt from, and below it what the base and the LoRA draw for the same prompts and seeds."""
    results = json.loads((run / "metrics.json").read_text())
    seeds = len(results["scores"]["base"][name]) // len(results["prompts"])
    chosen = [str(i * seeds) for i in range(len(results["prompts"]))]
    pictures = sorted(training.glob("*.png"))
    shown = pictures[:: -(-len(pictures) // len(chosen))]
    rows = [
        [Image.open(path).convert("RGB").resize((256, 256)) for path in shown],
        open_all(run / "base", chosen),
        open_all(run / "lora", chosen),
    ]
    measure = {"style": "distance", "subject": "score"}[name]
    learnt = "learnt from" + (f" {len(pictures)} such" if shown != pictures else "")
    scale = results["settings"]["lora_scale"]
    drawn = {"base": "base", "lora": "lora" if scale == 1 else f"lora at {scale:g}"}
    labels = [learnt] + [f"{words}, {measure} {results['means'][key][name]:.2f}" for key, words in drawn.items()]
    sheet(f"{name}.png", rows, labels, [], results["prompts"])


def together() -> None:
    """Two held-out conditions, drawn by the ControlNet of Task 1-1 with more and more of Task 2's style."""
    sys.path.insert(0, str(TASK_1))
    sys.path.append(str(TASK_2))  # behind, as both have an evaluate.py
    from diffusion.loading import load_pipeline
    from evaluate import generate
    from lora.files import load_lora

    run, prompts = RUNS / "controlnet-canny", ["a print of a candle", "a print of books"]
    conditions = open_all(run / "conditions", ["0", "3"])
    pipeline = load_pipeline(str(ROOT / "tiny_sd"), run / "controlnet")
    load_lora(pipeline, RUNS / "lora-custom", "style")
    scales, drawn = (0.0, 0.25, 0.5, 0.75, 1.0), []
    for scale in scales:
        pipeline.set_adapters("style", scale)
        drawn.append(generate(pipeline, conditions, prompts, guidance_scale=2.5))
    rows = [[condition, *(images[i] for images in drawn)] for i, condition in enumerate(conditions)]
    sheet("together.png", rows, prompts, ["condition"] + [f"style LoRA, scale {scale:g}" for scale in scales])


def canny() -> None:
    """Edges as the condition: five held-out ones with what was drawn for them."""
    run = RUNS / "controlnet-canny"
    scores = json.loads((run / "metrics.json").read_text())["held_out"]["edge_f1"]
    prompts = json.loads((run / "generated" / "prompts.json").read_text())
    names = [file[: -len(".png")] for file in prompts]
    rows = [open_all(run / folder, names) for folder in ("conditions", "generated")]
    notes = [f"F1 of edges {score:.2f}" for score in scores[: len(names)]]
    sheet("canny.png", rows, ["condition", "generated"], list(prompts.values()), notes)


def speed() -> None:
    """Images a second of each training recipe: the median, and the spread over the rounds."""
    measured = json.loads((RUNS / "train_step.json").read_text())
    rates = {recipe: sorted(1 / run["seconds"] for run in runs) for recipe, runs in measured["results"].items()}
    figure, axis = plt.subplots(figsize=(6.4, 2.4), constrained_layout=True)
    for recipe, values in reversed(rates.items()):
        middle = statistics.median(values)
        spread = [[middle - values[0]], [values[-1] - middle]]
        color = "#dd8452" if recipe.startswith("ours") else "#c9d7ee"
        bar = axis.barh(recipe, middle, xerr=spread, color=color, edgecolor="black", capsize=3)
        axis.bar_label(bar, [f"{middle:.1f}"], label_type="center")
    axis.set_xlabel(f"images a second: {measured['task']}, {measured['size']}, batch {measured['batch_size']}")
    axis.set_title(measured["device"], fontsize=9)
    figure.savefig(HERE / "speed.png", dpi=110)
    plt.close(figure)


def time_to_quality() -> None:
    """The IoU of held-out conditions over the time of each training, a line for every seed."""
    measured = json.loads((RUNS / "time_to_quality.json").read_text())
    figure, axis = plt.subplots(figsize=(6.4, 3.2), constrained_layout=True)
    colors = {"ours": "#dd8452", "library": "#4c72b0", "course": "#8c8c8c"}
    for recipe, runs in measured["runs"].items():
        for number, run in enumerate(runs):
            curve = [(check["seconds"], check["iou"]) for check in run["checks"]]
            label = recipe if number == 0 else None
            axis.plot(*zip(*curve), color=colors[recipe], label=label, marker="o", markersize=2)
    axis.axhline(measured["settings"]["target"], color="black", linewidth=0.8, linestyle="dotted")
    # Logarithmic, as the recipes are an order of magnitude apart.
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("seconds from the command, drawing and scoring not counted")
    axis.set_ylabel(f"mean IoU, {measured['settings']['conditions']} held-out conditions")
    axis.legend()
    figure.savefig(HERE / "time_to_quality.png", dpi=110)
    plt.close(figure)


def main() -> None:
    fill50k()
    lora()
    style, subject = RUNS / "lora-custom" / "evaluation", RUNS / "dreambooth-cat" / "evaluation"
    demo_run, lora_file = RUNS / "demo" / METRICS, RUNS / "lora-custom" / "pytorch_lora_weights.safetensors"
    figures = [
        ([demo_run], demo),
        ([style / METRICS], lambda: taught("style", TASK_2 / "sample_data" / "artistic-custom" / "train", style)),
        ([subject / METRICS], lambda: taught("subject", TASK_2 / "sample_data" / "dreambooth-cat", subject)),
        ([RUNS / "controlnet-canny" / METRICS, lora_file], together),
        ([RUNS / "controlnet-canny" / METRICS], canny),
        ([RUNS / "train_step.json"], speed),
        ([RUNS / "time_to_quality.json"], time_to_quality),
    ]
    for needed, draw in figures:
        missing = [str(path) for path in needed if not path.is_file()]
        if missing:
            print(f"A figure is left out: there is no {' and no '.join(missing)} yet.")
        else:
            draw()


if __name__ == "__main__":
    main()
