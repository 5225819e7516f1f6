"""How many pictures does a ControlNet need, and which rank a LoRA? Two tables from the embedded base.

    python benchmarks/how_much.py samples        # the demo with fewer and more samples: IoU
    python benchmarks/how_much.py rank           # both of Task 2's LoRAs by rank: closeness, drift, seconds, file size

Trainings and evaluations are those of the presets, each in its folder below runs/how_much/. Whoever stops it (Ctrl-C)
starts it again: what is finished is not done twice, and a training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Sequence

from PIL import Image

from finetune.argument_types import positive_int

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tiny_sd.measures.marks import MOST, marks_of

RUNS = ROOT / "runs" / "how_much"
TASK_1, TASK_2 = ROOT / "task_1_controlnet", ROOT / "task_2_lora"
BASE = ["--base", str(ROOT / "tiny_sd")]
SAMPLES = (100, 250, 1000, 4000, 16000)
SEEDS = (0, 1, 2)  # so that one sees what is chance
RANKS = (1, 4, 16, 64)
# Of each LoRA's preset: its program, what evaluate.py measures, and the pictures that it learns from.
LORAS = {
    "style-tiny": ("train_lora.py", "style", "sample_data/artistic-custom/train"),
    "dreambooth-tiny": ("train_dreambooth_lora.py", "subject", "sample_data/dreambooth-cat"),
}


def run(folder: Path, command: Sequence[str]) -> None:
    """Runs a program with this Python; ends this one if it fails."""
    print(f"\n{' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=folder).returncode:
        sys.exit(f"Error: {command[0]} stopped; what was finished is kept, start again to go on.")


def measured(folder: Path, evaluate: Sequence[str], task: Path) -> dict[str, Any]:
    """The figures of the evaluation in a training's folder, made now if they are not there."""
    trained, folder = folder / "training_options.json", folder / "evaluation"
    file = folder / "metrics.json"
    # Older than what was trained last: the training has gone on since, by more --max_train_steps.
    if not file.is_file() or file.stat().st_mtime < trained.stat().st_mtime:
        run(task, ["evaluate.py", *evaluate, *BASE, "--output_dir", str(folder)])
    return json.loads(file.read_text(encoding="utf-8"))


def options_of(folder: Path) -> dict[str, Any]:
    """A training's flags, and its seconds from the first start to the end."""
    return json.loads((folder / "training_options.json").read_text(encoding="utf-8"))


def by_samples(numbers: Sequence[int], more: Sequence[str]) -> str:
    rows = [
        "| samples | seen on average | mean IoU of 100 held-out conditions (of each seed) | above 0.8 |",
        "|---|---|---|---|",
    ]
    for number in numbers:
        found = [controlnet_of(number, seed, more) for seed in SEEDS]
        ious = sorted(one["mean_iou"] for one, _ in found)
        above = statistics.mean(one["share_above_0.8"] for one, _ in found)
        trained = found[0][1]
        seen = trained["options"]["max_train_steps"] * trained["samples_per_step"] / number
        shown = f"{statistics.mean(ious):.3f} ({ious[0]:.3f} to {ious[-1]:.3f})"
        rows.append(f"| {number:,} | {seen:,.1f} times | {shown} | {above:.0%} |")
    return "\n".join(rows)


def controlnet_of(number: int, seed: int, more: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a ControlNet's held-out pictures reached, and what it was trained with."""
    folder = RUNS / f"samples-{number}" / f"seed-{seed}"
    flags = ["--preset", "demo", "--max_train_samples", str(number), "--seed", str(seed), "--validation_steps", "0"]
    flags += ["--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    run(TASK_1, ["train.py", *flags, *more])
    drawn = ["--controlnet", str(folder / "controlnet"), "--guidance_scale", "1.5", "--num_inference_steps", "8"]
    return measured(folder, drawn, TASK_1)["held_out"], options_of(folder)


def lora_of(preset: str, rank: int, more: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """A LoRA's folder and the figures of its evaluation."""
    program, measure, data = LORAS[preset]
    folder = RUNS / f"{measure}-rank-{rank}"
    flags = ["--preset", preset, "--rank", str(rank), "--output_dir", str(folder), "--validation_epochs", "0"]
    if measure == "subject":  # the base's pictures of the class are the same for all
        flags += ["--class_data_dir", str(RUNS / "class-images")]
    run(TASK_2, [program, *flags, "--resume_from_checkpoint", "latest", *more])
    drawn = ["--measure", measure, "--lora", str(folder), "--train_data_dir", data, "--guidance_scale", "2.5"]
    return folder, measured(folder, drawn, TASK_2)


def with_marks(folder: Path) -> float:
    """The share of the pictures that show that cat; the score by features cannot tell it from others of its colours."""
    pictures = [Image.open(file) for file in sorted(folder.glob("*.png"))]
    return statistics.mean(sum(marks_of(picture).values()) >= MOST for picture in pictures)


def by_rank(ranks: Sequence[int], more: Sequence[str]) -> str:
    rows = [
        f"| rank | style distance, share of the base's | pictures with {MOST} of the cat's 6 marks | subject score "
        "| drift of the class | seconds, both | a file |",
        "|---|---|---|---|---|---|---|",
    ]
    for rank in ranks:
        (style, of_style), (subject, of_subject) = (lora_of(preset, rank, more) for preset in LORAS)
        marks = with_marks(subject / "evaluation" / "lora")
        distance = of_style["means"]["lora"]["style"] / of_style["means"]["base"]["style"]
        score, moved = of_subject["means"]["lora"]["subject"], of_subject["drift"]["mean"]
        size = (style / "pytorch_lora_weights.safetensors").stat().st_size / 2**20
        seconds = options_of(style)["seconds"] + options_of(subject)["seconds"]
        rows.append(
            f"| {rank} | {distance:.0%} | {marks:.0%} | {score:.2f} | {moved:.0%} | {seconds:.0f} | {size:.1f} MiB |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["samples", "rank"])
    parser.add_argument("--values", type=positive_int, nargs="+", default=None, help="these numbers only")
    args, more = parser.parse_known_args()  # what else is typed goes to the trainings
    table = by_samples if args.table == "samples" else by_rank
    print("\n" + table(args.values or (SAMPLES if args.table == "samples" else RANKS), more))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped: start again to go on.")
