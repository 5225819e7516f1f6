"""How far apart are right and wrong, beside what chance does? For the grader's limit `least_iou`, in grades/numbers.py.

    python tests/grading/measurements/repeats.py                        # ten seeds each: 20 trainings

Trains the right solution, and one that leaves the features as they are in TODO (3), so that no zero convolution learns,
as the grader does, with one seed after the other, and prints the mean IoU of each. Two or three minutes for each on one
core; each result is kept as it comes, and a second start goes on. No test for CI, which has minutes.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Mapping

import paths  # noqa: F401 (which lets the others be found)

from grading.autograder.alignment import PREPARE_SECONDS, Shared, evaluate, train
from grading.autograder.job import private_folder
from grading.autograder.run import PLAIN_ENVIRONMENT, PREPARED, ready
from grading.grades.numbers import Numbers
from grading.sandbox.cores import thread_environment
from grading.sandbox.start import warm_python
from grading.sandbox.trusted import GraderError
from solutions import SOLUTION, WRONG, between_banners

RESULTS = Path("build/repeats.jsonl")
FORM = "features left as they are"


def wrong_solution() -> dict[str, str]:
    (text,) = [text for todo, form, *_, text in WRONG if (todo, form) == ("3", FORM)]
    return {**SOLUTION, "3": between_banners("3", text)}


def overlap(parts: Mapping[str, str], shared: Shared, numbers: Numbers) -> float:
    """The mean IoU of the test conditions and the held-out ones, after a whole training."""
    with private_folder() as work:
        weights = work / "weights.safetensors"
        failed = train(parts, shared, numbers, numbers.train_seconds, [work], weights, steps=numbers.train_steps)
        drawn = failed or evaluate(weights, shared, numbers, numbers.total_seconds, work)
    if drawn.problem:
        raise GraderError(drawn.problem)
    return mean((*drawn.ious, *drawn.held_out))


def read(path: Path) -> dict[tuple[str, int], float]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return {(name, seed): iou for name, seed, iou in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="so many trainings of each of the two")
    parser.add_argument("--jobs", type=int, default=1, help="so many at the same time, of one thread each")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="the grader's folder of what is computed once")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file with a line for each result")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(thread_environment(1))
    numbers = replace(Numbers(), prove=False)
    texts = {"right": SOLUTION, "wrong": wrong_solution()}
    done = read(args.results)
    waiting = [(name, seed) for seed in range(args.seeds) for name in texts if (name, seed) not in done]
    with warm_python(PLAIN_ENVIRONMENT), ready(args.prepared, numbers, PREPARE_SECONDS) as means:
        shared, pool = Shared(means.shared), ThreadPoolExecutor(args.jobs)
        running = {
            pool.submit(overlap, texts[name], shared, replace(numbers, seed=seed)): (name, seed)
            for name, seed in waiting
        }
        for future in as_completed(running):
            name, seed = running[future]
            with args.results.open("a") as file:
                file.write(json.dumps([name, seed, future.result()]) + "\n")
            print(f"{name}, seed {seed}: {future.result():.3f}", flush=True)
    found = {name: [iou for (one, _), iou in read(args.results).items() if one == name] for name in texts}
    for name, ious in found.items():
        print(f"{name}: {min(ious):.3f} to {max(ious):.3f}, mean {mean(ious):.3f}, deviation {stdev(ious):.3f}")
    gap, spread = min(found["right"]) - max(found["wrong"]), max(max(ious) - min(ious) for ious in found.values())
    print(
        f"the lowest right one is {gap:.3f} above the highest wrong one, {gap / spread:.1f} times what repeats differ"
    )


if __name__ == "__main__":
    main()
