"""Takes every figure that a GPU can give within a time limit: tests, memory, training, sampling.

    python benchmarks/gpu_rows.py --output gpu --seconds 150

What matters most comes first. Each part's result is printed and written to the output folder as soon as it is there
(results.json, tables.md, the tests' output); a part that fails is reported and the next ones go on; what there is no
time left for is left out, and at the limit the program ends, whatever it is at.

The tests run, and the compiled recipes compile, in processes beside the counting of memory, which they do not change.
While anything is timed, they are finished or stand still.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `finetune` need not be installed
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from finetune.argument_types import natural_int, positive_float, positive_int, sampling_steps
from gpu.processes import CompiledRecipe, Pytest, tell_and_wait, tests_table
from recipes import ALL_RECIPES

# Which recipes are timed, in this order: task, recipe, seconds that it takes to build and time it.
TIMED = [
    ("controlnet", "ours", 8), ("controlnet", "library", 8), ("lora", "ours", 6), ("lora", "library", 6),
    ("controlnet", "ours, low memory", 8),
]  # fmt: skip
TIMED_LATER = [("controlnet", "course", 10), ("controlnet", "ours, channels_last", 8)]
# Which tests run beside one another; those of --compile take too long, and compiling is timed anyhow.
TESTS = {
    "resume": ["tests/repository/test_gpu.py", "-k", "residuals or resumed"],
    "lora": ["tests/repository/test_gpu.py", "-k", "lora_is or dreambooth"],
    "others": ["tests/repository/test_gpu.py", "-k", "not (residuals or resumed or lora_is or dreambooth or compiled)"],
    "programs": ["tests/trainings/test_training.py"],
}
COMPILED = ["ours, compiled, channels_last", "ours, compiled"]


class Rows:
    """What was found so far, in the folder as soon as it is found, and the time that is left."""

    def __init__(self, output: Path, seconds: float) -> None:
        self.output, self.seconds = output, seconds
        self.results: dict[str, Any] = {"parts": {}, "training": {}, "memory": [], "tests": {}, "sampling": None}
        self.now_at = "start"
        self.lock = threading.RLock()
        self.children: list[Any] = []
        output.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - STARTED)

    def part(self, name: str, needs: float, take: Callable[[], Any]) -> None:
        """Takes a part if there is time for it; `take` keeps its result and returns what is printed of it."""
        if self.left() < needs:
            self.record(name, {"outcome": f"left out: {self.left():.0f} s were left, it needs {needs:.0f}"})
            return
        self.now_at, start = name, time.monotonic()
        try:
            said, outcome = take(), "done"
        except Exception:  # whatever it is, the next parts are to be measured too, and the program's status tells
            said, outcome = traceback.format_exc(), "failed"
        self.record(name, {"outcome": outcome, "seconds": time.monotonic() - start}, said)
        free_memory()

    def record(self, name: str, entry: dict[str, Any], said: str = "") -> None:
        with self.lock:
            failed = entry["outcome"] == "failed"
            self.results["parts"][name] = {
                **entry,
                "at": time.monotonic() - STARTED,
                **({"why": said} if failed else {}),
            }
            print(f"\n=== {time.monotonic() - STARTED:.1f} s: {name}: {entry['outcome']}\n{said}", flush=True)
            self.write()

    def write(self) -> None:
        """The folder's files, each at once whole."""
        with self.lock:
            texts = {"results.json": json.dumps(self.results, indent=1, default=str), "tables.md": self.tables()}
            for name, text in texts.items():
                temporary = self.output / f".{name}.tmp"
                temporary.write_text(text + "\n")
                os.replace(temporary, self.output / name)

    def tables(self) -> str:
        """All tables, in Markdown."""
        results = self.results
        texts = [f"{key}: {results[key]}" for key in ("device", "versions") if key in results]
        texts += [f"Tests, {name}\n\n{tests_table(found)}" for name, found in results["tests"].items()]
        if results["memory"]:
            from gpu.memory import memory_table

            texts.append(f"Memory of a step\n\n{memory_table(results['memory'])}")
        for task, found in results["training"].items():
            texts.append(f"Training, {task}\n\n{training_table(found)}")
        if results["sampling"]:
            from sample import words

            difference = results["sampling"]["largest_difference"]
            texts.append(f"Sampling\n\n{words(results['sampling'])}\nlargest difference {difference:.5f}")
        parts = [f"- {name}: {part['outcome']}, at {part['at']:.0f} s" for name, part in results["parts"].items()]
        return "\n\n".join([*texts, "\n".join(parts)])

    def finish(self, why: str) -> None:
        """Ends all there is, and the process with it: a library may be anywhere at this moment."""
        with self.lock:
            for child in self.children:
                child.end()
            self.results["ended"] = f"{why}, after {time.monotonic() - STARTED:.0f} s, at: {self.now_at}"
            self.write()
            print(f"\n{self.results['ended']}\n\n{self.tables()}", flush=True)
            outcomes = [part["outcome"] for part in self.results["parts"].values()]
            os._exit(1 if "failed" in outcomes else 0)


def training_table(found: dict[str, list[dict[str, Any]]]) -> str:
    from train_step import table

    return table({name: runs for name, runs in found.items() if runs})


def free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(rows: Rows) -> str:
    import accelerate
    import diffusers
    import peft
    import torch
    import transformers

    from models import device_name

    libraries = (torch, diffusers, transformers, accelerate, peft)
    rows.results["device"] = device_name()
    rows.results["versions"] = {library.__name__: library.__version__ for library in libraries}
    rows.results["versions"]["python"] = platform.python_version()
    rows.results["versions"]["cuda, cudnn"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    return f"{rows.results['device']}\n{rows.results['versions']}"


def take_memory(rows: Rows, args: argparse.Namespace, task: str, precision: str) -> str:
    from gpu.memory import memory_table, peaks

    # DreamBooth with prior preservation is a LoRA's step on twice the batch.
    twice = [2 * args.memory_batch_sizes[-1]] if task == "lora" else []
    found = peaks(task, precision, args.size, [*args.memory_batch_sizes, *twice])
    rows.results["memory"] += found
    return memory_table(found)


def take_training(rows: Rows, args: argparse.Namespace, task: str, recipe: str) -> str:
    from train_step import measure

    course = recipe == "course"  # takes its images one by one: half as many, and fewer steps, take long enough
    batch_size, steps = (max(1, args.batch_size // 2), min(2, args.steps)) if course else (args.batch_size, args.steps)
    found = measure(recipe, task, args.size, batch_size, steps)
    return keep_training(rows, task, recipe, {**found, "batch_size": batch_size, "steps": steps})


def keep_training(rows: Rows, task: str, recipe: str, found: dict[str, Any]) -> str:
    with rows.lock:
        rows.results["training"].setdefault(task, {}).setdefault(recipe, []).append(found)
        return training_table(rows.results["training"][task])


def take_sampling(rows: Rows, args: argparse.Namespace) -> str:
    from sample import compare, images_are_equal, words

    result = compare(args.size, args.sampling_batch_size, args.num_inference_steps, repeats=2)
    rows.results["sampling"] = result
    equal = images_are_equal(result["largest_difference"])
    return f"{words(result)}\nlargest difference {result['largest_difference']:.5f}, {'' if equal else 'NOT '}equal"


def take_tests(rows: Rows, tests: Pytest, name: str, seconds: float) -> str:
    finished = tests.wait(seconds)
    tests.end()
    rows.results["tests"][name] = tests.results()
    failed = [test for test in rows.results["tests"][name] if test["outcome"] in ("failure", "error")]
    reasons = "\n".join(f"{test['name']}: {text}" for test in failed for text in test["why"])
    note = "" if finished else "not finished in time\n"
    return f"{note}{tests_table(rows.results['tests'][name])}\n{reasons}"


def take_compiled(rows: Rows, args: argparse.Namespace, child: CompiledRecipe, seconds: float) -> str:
    found = child.result(seconds)
    first = found["first"] - min(found["paused"], found["first"])
    return keep_training(rows, "controlnet", child.recipe, {**found, "first": first, "batch_size": args.batch_size})


def time_compiled(rows: Rows, args: argparse.Namespace, children: list[CompiledRecipe]) -> None:
    for child in children:
        take = partial(take_compiled, rows, args, child, rows.left() - 3)
        rows.part(f"training, controlnet, {child.recipe}", 5, take)


def take_all(rows: Rows, args: argparse.Namespace, folder: Path) -> None:
    tests = {}
    for name, chosen in {} if args.without_tests else TESTS.items():
        tests[name] = Pytest(rows.output / f"tests_{name}.log", folder, "-m", "gpu", *chosen)
    compiled = [] if args.without_compiled else [
        CompiledRecipe(folder / f"compiled_{i}.log", recipe, args.size, args.batch_size, args.steps)
        for i, recipe in enumerate(COMPILED)
    ]  # fmt: skip
    rows.children = [*tests.values(), *compiled]
    rows.part("libraries", 0, partial(describe, rows))
    for task in ("controlnet", "lora"):
        first = args.precisions[0]
        rows.part(f"memory, {task}, {first}", 10, partial(take_memory, rows, args, task, first))
    for name, child in tests.items():  # so long that what is most important is still timed
        rows.part(f"tests, {name}", 0, partial(take_tests, rows, child, name, max(1.0, rows.left() - 70)))
    for child in compiled:
        child.pause()
    for task, recipe, needs in TIMED:
        rows.part(f"training, {task}, {recipe}", needs, partial(take_training, rows, args, task, recipe))
    rows.part("sampling", 15, partial(take_sampling, rows, args))
    for child in compiled:
        child.go_on()
    time_compiled(rows, args, [child for child in compiled if child.is_ready()])
    for precision in args.precisions[1:]:
        for task in ("controlnet", "lora"):
            rows.part(f"memory, {task}, {precision}", 10, partial(take_memory, rows, args, task, precision))
    time_compiled(rows, args, [child for child in compiled if not child.timed])
    for task, recipe, needs in TIMED_LATER:
        rows.part(f"training, {task}, {recipe}", needs, partial(take_training, rows, args, task, recipe))
    for number in range(2, 2 + args.more_rounds):
        for task, recipe, needs in TIMED:
            take = partial(take_training, rows, args, task, recipe)
            rows.part(f"training, {task}, {recipe}, round {number}", needs, take)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("gpu"), help="folder for what is found")
    add("--seconds", type=positive_float, default=150, help="after which the program ends, whatever it is at")
    add("--size", choices=["tiny_sd", "sd14"], default="sd14")
    add("--batch_size", type=positive_int, default=8, help="images of a timed training step")
    add("--steps", type=positive_int, default=5, help="training steps that are timed")
    add("--more_rounds", type=natural_int, default=2, help="in which training is timed again, if there is time")
    add("--precisions", choices=["no", "fp16", "bf16"], nargs="+", default=["bf16", "fp16"], help="of memory")
    add("--memory_batch_sizes", type=positive_int, nargs="+", default=[1, 2, 4, 8])
    add("--sampling_batch_size", type=positive_int, default=4)
    add("--num_inference_steps", type=sampling_steps, default=20)
    add("--without_tests", action="store_true")
    add("--without_compiled", action="store_true")
    add("--compiled", choices=list(ALL_RECIPES), default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.compiled:
        from train_step import measure

        print(json.dumps(measure(args.compiled, "controlnet", args.size, args.batch_size, args.steps, tell_and_wait)))
        return
    rows = Rows(args.output, args.seconds)
    watch = threading.Timer(max(0.0, rows.left()), rows.finish, ["The time is over"])
    watch.daemon = True
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        rows.part("all", 0, lambda: take_all(rows, args, Path(folder)) or "")
        rows.finish("All was taken")


if __name__ == "__main__":
    main()
