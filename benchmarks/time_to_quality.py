"""Takes the time from the command to pictures that follow their conditions, by several recipes, on the embedded base.

    python benchmarks/time_to_quality.py                                    # all three; hours on two cores
    python benchmarks/time_to_quality.py --recipes ours                     # ten minutes
    python benchmarks/time_to_quality.py --recipes ours --stage "--preset demo --learning_rate 2e-3"

Trains until the mean IoU of 32 held-out conditions reaches 0.90, looked at every 50 steps; drawing and scoring do not
count, starting Python does. Every run is a process of its own.

ours:    what `make demo` trains; or the stages that --stage gives, each train.py's flags
library: the usual example script's step (see train_step.py) at 128 px, with the learning rate of four whose ControlNet
         is best after --pilot_steps steps; pictures are rendered and decoded before the time starts
course:  the assignment's recipe (see train_step.py), at its learning rate of 1e-5

What is there in --output is not measured again, so that a second start goes on; other stages, or another rate, want
another --output.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

from finetune.argument_types import natural_int, part_above_none, positive_float, positive_int

ROOT = Path(__file__).resolve().parent.parent
OURS = ("--preset demo",)
RATES = (1e-5, 1e-4, 4e-4, 1e-3)
COURSE_RATE = 1e-5
BATCH_SIZE = 16
# Whoever has not arrived after so many times our median is not waited for.
PATIENCE = 12.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipes", nargs="+", choices=["ours", "library", "course"], default=["ours", "library", "course"])
    add("--stage", action="append", metavar="FLAGS", help="of ours, train.py's flags; several in their order")
    add("--seeds", type=natural_int, nargs="+", default=[0, 1, 2])
    add("--threads", type=positive_int, default=2)
    add("--target", type=part_above_none, default=0.9, help="mean IoU")
    add("--conditions", type=positive_int, default=32, help="drawn at each check")
    add("--every", type=positive_int, default=50, help="steps between two checks")
    add("--limit", type=positive_float, default=None, help=f"seconds for each run (default: {PATIENCE:.0f} times ours)")
    add("--rate", type=positive_float, default=None, help="of library; without it the best of four is looked for")
    add("--pilot_steps", type=positive_int, default=500)
    add("--output", type=Path, default=ROOT / "runs" / "time_to_quality.json")
    return parser.parse_args()


def start(settings: dict[str, Any], args: argparse.Namespace, journal: Path, limit: float) -> dict[str, Any]:
    """One process of `quality_runs.py` to its end; returns the journal."""
    shared = {"threads": args.threads, "target": args.target, "conditions": args.conditions, "every": args.every}
    told = json.dumps({**shared, "journal": str(journal), "limit": limit, **settings})
    command = [sys.executable, str(ROOT / "benchmarks" / "quality_runs.py"), told]
    subprocess.run(command, check=True, cwd=ROOT / "task_1_controlnet")
    return json.loads(journal.read_text())


def train_ours(args: argparse.Namespace, seed: int, limit: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        journal, started, before = Path(folder) / "journal.json", time.monotonic(), []
        for number, stage in enumerate(args.stage or OURS):
            place = Path(folder) / f"stage-{number}"
            flags = [*shlex.split(stage), "--seed", str(seed), "--output_dir", str(place), *before]
            found = start({"recipe": "ours", "flags": flags, "started": started}, args, journal, limit)
            if found["reached"] or found["checks"][-1]["seconds"] > limit:
                break
            before = ["--controlnet_model_name_or_path", str(place / "controlnet")]
        return {"seed": seed, "stages": list(args.stage or OURS), **found}


def train_other(
    args: argparse.Namespace, recipe: str, seed: int, rate: float, limit: float, steps: int | None = None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"recipe": recipe, "batch_size": BATCH_SIZE, "rate": rate, "seed": seed, "steps": steps}
        found = start({**settings, "started": time.monotonic()}, args, Path(folder) / "journal.json", limit)
        return {"seed": seed, "rate": rate, **found}


def best_rate(args: argparse.Namespace, results: dict[str, Any]) -> float:
    """The learning rate of the library's step with the highest IoU after the pilot's steps."""
    pilots = results.setdefault("pilots", {})
    for rate in RATES:
        known = pilots.get(str(rate))
        if not known or known[-1]["steps"] != args.pilot_steps and known[-1]["iou"] < args.target:
            print(f"\nlibrary, {args.pilot_steps} steps at {rate:g}", flush=True)
            run = train_other(args, "library", args.seeds[0], rate, float("inf"), args.pilot_steps)
            pilots[str(rate)] = run["checks"]
            keep(args.output, results)
    return float(max(pilots, key=lambda rate: pilots[rate][-1]["iou"]))


def is_other(args: argparse.Namespace, recipe: str, run: dict[str, Any]) -> bool:
    """Whether a run that is there was made by other flags than those of now."""
    if recipe == "ours":
        return run["stages"] != list(args.stage or OURS)
    return recipe == "library" and args.rate not in (None, run["rate"])


def keep(file: Path, results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def seconds_of(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Of the runs that arrived."""
    return sorted(run["checks"][-1]["seconds"] for run in runs if run["reached"])


def row(name: str, runs: Sequence[dict[str, Any]], library: Sequence[dict[str, Any]]) -> str:
    """Medians over seeds with their spread. Where most did not arrive there is no median, and the ratio is a bound."""
    arrived, last = seconds_of(runs), [run["checks"][-1] for run in runs]
    if len(arrived) == len(runs):
        took = f"{statistics.median(arrived):.0f} ({arrived[0]:.0f} to {arrived[-1]:.0f})"
    else:
        seen = ", ".join(f"{check['iou']:.3f}" for check in last)
        took = f"{len(arrived)} of {len(runs)} within {max(c['seconds'] for c in last):.0f}: IoU {seen}"
    steps = f"{statistics.median(run['steps'] for run in runs):.0f}"
    samples = f"{statistics.median(run['samples'] for run in runs):.0f}"
    return f"| {name} | {took} | {steps} | {samples} | {ratio_in_words(runs, library)} |"


def ratio_in_words(runs: Sequence[dict[str, Any]], library: Sequence[dict[str, Any]]) -> str:
    """How many times faster than library: "at least" where some of library's runs were ended before they arrived."""
    if not library or len(seconds_of(runs)) < len(runs):
        return "–"
    took = {run["seed"]: run["checks"][-1]["seconds"] for run in runs}
    pairs = [
        (run["checks"][-1]["seconds"] / took[run["seed"]], run["reached"]) for run in library if run["seed"] in took
    ]
    if not pairs:
        return "–"
    ratios = sorted(ratio for ratio, _ in pairs)
    bound = "" if all(reached for _, reached in pairs) else "at least "
    return f"{bound}{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"


def table(results: dict[str, Any], target: float) -> str:
    lines = [f"| recipe | seconds to an IoU of {target:.2f} | steps | samples | times as fast as library |"]
    lines.append("|---|---|---|---|---|")
    lines += [row(name, runs, results["runs"].get("library", [])) for name, runs in results["runs"].items()]
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    results = json.loads(args.output.read_text()) if args.output.is_file() else {"runs": {}}
    settings = {"target": args.target, "conditions": args.conditions, "every": args.every, "threads": args.threads}
    if results.setdefault("settings", settings) != settings:
        sys.exit(f"{args.output} was measured with {results['settings']}: name another --output.")
    for recipe in args.recipes:
        runs = results["runs"].setdefault(recipe, [])
        if any(is_other(args, recipe, run) for run in runs):
            sys.exit(f"{args.output} has runs of {recipe!r} with other flags than these: name another --output.")
        ours = seconds_of(results["runs"].get("ours", []))
        limit = args.limit or (PATIENCE * statistics.median(ours) if ours and recipe != "ours" else 3600.0)
        rate = COURSE_RATE if recipe == "course" else args.rate
        for seed in args.seeds:
            if seed in [run["seed"] for run in runs]:
                continue
            if recipe == "library" and rate is None:
                rate = best_rate(args, results)
            print(f"\n{recipe}, seed {seed}", flush=True)
            found = train_ours(args, seed, limit) if recipe == "ours" else train_other(args, recipe, seed, rate, limit)
            runs.append(found)
            keep(args.output, results)
    print(f"\n{table(results, args.target)}")


if __name__ == "__main__":
    main()
