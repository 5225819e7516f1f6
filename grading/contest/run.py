"""A contest of training flags: who needs the fewest seconds until the discs fit their conditions?

    python -m grading.contest RECIPE.toml                    # one recipe, or several
    python -m grading.contest --example > my_recipe.toml     # the reference, which is what `make demo` does

A recipe is a file of flags for Task 1's train.py. It is trained on the embedded base, on two threads, until the mean
IoU of 32 held-out conditions reaches 0.90. Its seconds are divided by those of the reference recipe, which ran before
on the same machine, at most --reference-hours ago. Drawing and scoring does not count. Ctrl-C loses nothing: start
again, and it goes on.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import json
import platform
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from finetune.argument_types import file_path, part_above_none, positive_float, positive_int
from finetune.run.checkpoints import CheckpointError, write_file
from finetune.run.settings import fingerprint

from ..files.items import TASK_1
from ..grades.results import plain_text
from ..sandbox.cores import usable_cores
from ..sandbox.trusted import ROOT, GraderError
from .recipe import Recipe, RecipeError, read_recipe
from .stages import BASE, Conditions, Reached, Stopped, check_flags, run_recipe

REFERENCE = Path(__file__).with_name("demo.toml")
RESULT, TABLE, STARTED, LOCK = "result.json", "contest.csv", "conditions.json", ".contest-lock"
HOUR = 3600.0
WORDS = {
    "reached": "reached the mean IoU that is asked for",
    "steps": "came to the end of its steps without reaching it",
    "time": "used up its time without reaching it",
    "memory": "took more memory than there is for it",
    "diverged": "diverged: its loss was not finite",
}


def version_of_code() -> str:
    """A digest of all that trains: seconds from before an update are not divided by those from after it."""
    files = sorted(path for folder in (TASK_1, "finetune") for path in (ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def machine(conditions: Conditions) -> dict[str, Any]:
    """What a reference must share with what is divided by it."""
    return {
        "code": version_of_code(),
        "machine": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "torch": version("torch"),
        "base": fingerprint(str(ROOT / BASE))[:16],
        **asdict(conditions),
    }


def read_result(folder: Path, conditions: Conditions) -> dict[str, Any] | None:
    """What an earlier run came to under the same conditions."""
    file = folder / RESULT
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    return result if result["conditions"] == machine(conditions) else None


def place_of(recipe: Recipe, output: Path, conditions: Conditions) -> Path:
    """The recipe's folder. What is in it under other conditions, such as another machine's, is put aside, not removed.

    Raises:
        RecipeError, GraderError: if train.py cannot be started with it.
    """
    folder = output / recipe.folder_name
    started = folder / STARTED
    if started.is_file() and json.loads(started.read_text(encoding="utf-8")) != machine(conditions):
        aside(folder)
    if not started.is_file():
        check_flags(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(started, json.dumps(machine(conditions), indent=1) + "\n")
    return folder


def aside(folder: Path) -> None:
    """Renames a folder, so that nothing of it is lost and a new run has its place."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(target)


def measure(recipe: Recipe, output: Path, conditions: Conditions) -> dict[str, Any]:
    """Runs a recipe, or goes on with it, and keeps its result.

    Raises:
        RecipeError, GraderError, Stopped.
    """
    folder = place_of(recipe, output, conditions)
    found = read_result(folder, conditions)
    if found is None:
        reached = run_recipe(recipe, folder, conditions)
        found = {"recipe": recipe.name, **asdict(reached), "finished": time.time(), "conditions": machine(conditions)}
        write_file(folder / RESULT, json.dumps(found, indent=1) + "\n")
        for cache in folder.glob("stage-*/cache"):
            shutil.rmtree(cache)
    return found


def reference(output: Path, conditions: Conditions, hours: float) -> dict[str, Any]:
    """The reference's result: one of the last hours on this machine, else it runs now.

    Raises:
        GraderError: if it does not reach the target, Stopped.
    """
    recipe = read_recipe(REFERENCE, "reference")
    folder = output / recipe.folder_name
    known = read_result(folder, conditions)
    if known and time.time() - known["finished"] > hours * HOUR:
        aside(folder)
    found = measure(recipe, output, conditions)
    if not Reached(**{name: found[name] for name in Reached.__dataclass_fields__}).done:
        raise GraderError(
            f"The reference {WORDS[found['how']]} (IoU {found['iou']}), so there is nothing to divide by: {folder}."
        )
    return found


def contest(recipe: Recipe, output: Path, conditions: Conditions, hours: float) -> dict[str, Any]:
    """A recipe's result beside the reference's: `of_reference` is their ratio, None if it did not reach the target.

    Raises:
        RecipeError: if train.py cannot be started with it.
        GraderError: if this machine cannot hold the contest; Stopped.
    """
    folder = place_of(recipe, output, conditions)
    found = read_result(folder, conditions)
    if found and "of_reference" in found:
        return found
    base = reference(output, conditions, hours)
    found = measure(recipe, output, conditions)
    found["reference_seconds"] = base["seconds"]
    found["of_reference"] = found["seconds"] / base["seconds"] if found["how"] == "reached" else None
    write_file(folder / RESULT, json.dumps(found, indent=1) + "\n")
    return found


def in_words(result: Mapping[str, Any]) -> str:
    place = f"step {result['step']} of stage {result['stage']}"
    iou = "was never drawn" if result["iou"] is None else f"IoU {result['iou']:.3f} at {place}"
    if result["of_reference"] is None:
        return f"{result['recipe']} {WORDS[result['how']]}, after {result['seconds']:.0f} s: {iou}."
    return (
        f"{result['recipe']} needed {result['seconds']:.1f} s, {result['of_reference']:.2f} times the "
        f"{result['reference_seconds']:.1f} s of the reference: {iou}."
    )


def write_table(output: Path, conditions: Conditions) -> None:
    """Writes contest.csv, the fastest first; whoever did not reach the target is last."""
    # Those that were put aside, as they ran under other conditions, cannot be compared with these.
    results = [read_result(file.parent, conditions) for file in output.glob(f"*/{RESULT}")]
    compared = [result for result in results if result and "of_reference" in result]
    compared.sort(key=lambda result: (result["of_reference"] is None, result["of_reference"], result["recipe"]))
    with (output / TABLE).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "of the reference", "seconds", "reference seconds", "IoU", "stage", "step", "end"])
        for one in compared:
            ratio = "" if one["of_reference"] is None else f"{one['of_reference']:.3f}"
            iou = "" if one["iou"] is None else f"{one['iou']:.3f}"
            seconds = [f"{one['seconds']:.1f}", f"{one['reference_seconds']:.1f}"]
            writer.writerow([plain_text(one["recipe"]), ratio, *seconds, iou, one["stage"], one["step"], one["how"]])


def named(paths: Sequence[Path]) -> list[Recipe]:
    """The recipes in the files, each by a name of its own: the file's, or with its folder's where two are the same.

    Raises:
        RecipeError, OSError: for the first that cannot be used.
    """
    stems = [path.stem for path in paths]
    return [
        read_recipe(path, stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}_{stem}")
        for path, stem in zip(paths, stems)
    ]


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Waits until no other contest runs in the folder: two at once would take each other's time."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another contest is running in {output}: this one waits for its end.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m grading.contest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual, add = Conditions(), made.add_argument
    add("recipes", type=file_path, nargs="*", metavar="RECIPE.toml", help="one, or several")
    add("--example", action="store_true", help="print the reference recipe, and do nothing else")
    add("--output", type=file_path, default=Path("build/contest"), help="the folder for runs and results (%(default)s)")
    add("--iou", type=part_above_none, default=usual.target, help="the mean IoU to be reached (%(default)s)")
    add("--conditions", type=positive_int, default=usual.held_out, help="so many are drawn for it (%(default)s)")
    add("--gap", type=positive_float, default=usual.gap, help="seconds of training between two checks (%(default)s)")
    add("--threads", type=positive_int, default=usual.threads, help="to compute with (%(default)s)")
    add("--minutes", type=positive_float, default=usual.seconds / 60, help="of training, at most (%(default)s)")
    add("--memory", type=positive_int, default=usual.memory_mib, help="MiB, at most (%(default)s)")
    add("--reference-hours", type=positive_float, default=6.0, help="the reference may be so old (%(default)s)")
    return made


def hold(args: argparse.Namespace) -> None:
    """Runs all recipes, after looking whether all of them can be run."""
    conditions = Conditions(
        target=args.iou, held_out=args.conditions, gap=args.gap, threads=args.threads, seconds=60 * args.minutes,
        memory_mib=args.memory,
    )  # fmt: skip
    if args.threads > usable_cores():
        print(f"Note: {args.threads} threads on {usable_cores()} processor(s): they wait for each other.")
    recipes = named(args.recipes)
    with alone(args.output):
        for recipe in recipes:
            place_of(recipe, args.output, conditions)
        for recipe in recipes:
            print(in_words(contest(recipe, args.output, conditions, args.reference_hours)), flush=True)
            write_table(args.output, conditions)
    print(f"The table: {args.output / TABLE}")


def main() -> None:
    made = parser()
    args = made.parse_args()
    if args.example:
        return print(REFERENCE.read_text(encoding="utf-8"), end="")
    if not args.recipes:
        made.error("name a recipe, or give --example")
    try:
        hold(args)
    except (RecipeError, GraderError, CheckpointError, OSError) as error:
        sys.exit(f"Error: {error}")
    except Stopped as stopped:
        sys.exit(f"Stopped. {stopped}; start again to go on.")
    except KeyboardInterrupt:
        sys.exit("Stopped. Start again to go on.")
