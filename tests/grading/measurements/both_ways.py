"""Are verdicts and IoUs the same by proof and by the whole run, for all right and wrong solutions of the tests?

    python tests/grading/measurements/both_ways.py --jobs 2             # what is proved, against its whole run
    python tests/grading/measurements/both_ways.py --jobs 2 --all       # the whole run of what is not proved, too
    python tests/grading/measurements/both_ways.py --table              # only the table of what is there

Every text goes through the proof as in the grader. What is proved is then trained to its end all the same, in the
sandbox: its weights must be the right solution's to the bit, and IoU and points those that the proof gave. What is not
proved is trained to its end both ways, which is one and the same run: `--all` has it, for its IoU. Hours; each result
is kept as it comes, and a second start goes on. No test for CI, which has minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import paths  # noqa: F401 (which lets the others be found)

from grading.autograder.alignment import PREPARE_SECONDS, Shared, evaluate, train
from grading.autograder.job import private_folder
from grading.autograder.proof.plain import unusual
from grading.autograder.proof.prove import Reference, prove, same_bits
from grading.autograder.run import PLAIN_ENVIRONMENT, PREPARED, ready
from grading.autograder.todos import check_todos
from grading.grades.numbers import Numbers, with_settings
from grading.grades.rubric import Alignment, Evidence, Todos, judge_task_1
from grading.sandbox.cores import thread_environment, usable_cores
from grading.sandbox.limits import SandboxError
from grading.sandbox.start import warm_python
from grading.sandbox.trusted import GraderError
from solutions import NOT_STRICT, RIGHT, SOLUTION, WRONG, between_banners

RESULTS = Path("build/both_ways.jsonl")


@dataclass(frozen=True)
class Case:
    """A hand-in's five texts, and whether all of them are right."""

    name: str
    right: bool
    parts: dict[str, str]


def cases() -> Iterator[Case]:
    yield Case("the solution", True, SOLUTION)
    for right, rows in ((True, (*RIGHT, *NOT_STRICT)), (False, WRONG)):
        for todo, form, *_, text in rows:
            yield Case(f"({todo}) {form}", right, {**SOLUTION, todo: between_banners(todo, text)})


def points(alignment: Alignment, todos: Todos, numbers: Numbers) -> float:
    return judge_task_1(Evidence({}, todos=todos, alignment=alignment), numbers)[0]


def outcome(alignment: Alignment, todos: Todos, numbers: Numbers) -> dict[str, Any]:
    """What a teacher sees of it, as plain data."""
    ious = (*alignment.ious, *alignment.held_out)
    return {"problem": alignment.problem, "ious": ious, "points": points(alignment, todos, numbers)}


def both_ways(
    case: Case, fault: str | None, shared: Shared, reference: Reference, numbers: Numbers, everything: bool
) -> dict[str, Any]:
    """The outcome by proof, if there is one, and by the whole run, with the seconds that both took.

    `fault` is what `unusual` found in the texts.
    """
    seen: dict[str, Any] = {"name": case.name, "right": case.right}
    with private_folder() as work:
        todos = check_todos(case.parts, numbers, [work])
        weights, start = work / "weights.safetensors", time.monotonic()
        hidden = [work, reference.folder]
        known = prove(case.parts, shared, reference, numbers, hidden, weights, fault)
        seen["proof_seconds"] = time.monotonic() - start
        seen["by_proof"] = None if isinstance(known, str) else outcome(known, todos, numbers)
        seen["why_whole"] = known if isinstance(known, str) else ""
        if isinstance(known, str) and not everything:
            return seen
        start = time.monotonic()
        # With as many threads as the right solution was trained with: sums shared among threads are rounded otherwise.
        failed = train(case.parts, shared, numbers, numbers.train_seconds, hidden, weights, steps=numbers.train_steps)
        whole = failed or evaluate(weights, shared, numbers, 7200, work)
        seen["whole_seconds"] = time.monotonic() - start
        seen["by_whole_run"] = outcome(whole, todos, numbers)
        seen["same_weights"] = not failed and same_bits(weights, reference.whole)
    return seen


def agrees(seen: dict[str, Any]) -> bool:
    """Whether both ways came to the same; nothing to compare is agreement, too."""
    proof, whole = seen["by_proof"], seen.get("by_whole_run")
    if proof is None or whole is None:
        return True
    if proof["problem"] or whole["problem"]:  # the words may name a step
        return bool(proof["problem"] and whole["problem"]) and proof["points"] == whole["points"]
    return seen["same_weights"] and proof == whole


def table(results: list[dict[str, Any]]) -> str:
    def cell(shown: dict[str, Any] | None) -> str:
        if not shown:
            return "-"
        mean = sum(shown["ious"]) / len(shown["ious"]) if shown["ious"] else None
        return f"{'fails' if mean is None else format(mean, '.3f')}, {shown['points']:g} points"

    lines = [f"{'solution':52} {'by proof':17} {'by the whole run':17} same"]
    for seen in sorted(results, key=lambda one: (not one["right"], one["name"])):
        whole = seen.get("by_whole_run")
        same = "-" if not (seen["by_proof"] and whole) else "yes" if agrees(seen) else "NO"
        name = f"{'right' if seen['right'] else 'wrong'} {seen['name']}"
        lines.append(f"{name[:51]:52} {cell(seen['by_proof']):17} {cell(whole):17} {same}")
    for right in (True, False):
        those = [seen for seen in results if seen["right"] is right]
        proved = [seen for seen in those if seen["by_proof"] and not seen["by_proof"]["problem"]]
        lines.append(f"{'right' if right else 'wrong'}: {len(those)} solutions, {len(proved)} proved equal")
    lines.append(f"Not the same both ways: {sum(not agrees(seen) for seen in results)}")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Of each solution the last result that is whole: a line may have been cut off."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            seen = json.loads(line)
            found[seen["name"], seen["right"]] = seen
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def run(waiting: list[Case], args: argparse.Namespace, numbers: Numbers) -> None:
    with warm_python(PLAIN_ENVIRONMENT), ready(args.prepared, numbers, PREPARE_SECONDS) as means:
        shared, reference = Shared(means.shared), Reference(means.reference)
        start, pool = time.monotonic(), ThreadPoolExecutor(args.jobs)
        # `ast.parse` in several threads at once ends now and then in a SystemError (CPython 3.11.7).
        faults = [unusual(case.parts) for case in waiting]
        means_and_ways = (shared, reference, numbers, args.all)
        running = [pool.submit(both_ways, case, fault, *means_and_ways) for case, fault in zip(waiting, faults)]
        try:
            for number, future in enumerate(as_completed(running), 1):
                seen = future.result()
                with args.results.open("a") as file:
                    file.write(json.dumps(seen) + "\n")
                minutes = (time.monotonic() - start) / number * (len(running) - number) / 60
                word = "same" if agrees(seen) else "NOT THE SAME"
                print(f"{number} of {len(running)}, about {minutes:.0f} min left: {seen['name']}: {word}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--all", action="store_true", help="the whole run also of what is not proved")
    add("--only", default="", help="solutions with this in their name")
    add("--right", action="store_true", help="only right ones")
    add("--jobs", type=int, default=1, help="so many at the same time")
    add("--prepared", type=Path, default=PREPARED, help="the grader's folder of what is computed once")
    add("--results", type=Path, default=RESULTS, help="a file with a line for each result")
    add("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="as the grader's")
    add("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    numbers = replace(with_settings(Numbers(), args.settings), prove=True)
    os.environ.update(thread_environment(max(1, usable_cores() // args.jobs)))
    done = {(seen["name"], seen["right"]) for seen in read(args.results) if not args.all or "by_whole_run" in seen}
    waiting = [case for case in cases() if (case.name, case.right) not in done and args.only in case.name]
    waiting = [case for case in waiting if case.right or not args.right]
    try:
        if not args.table:
            run(waiting, args, numbers)
    except KeyboardInterrupt:
        sys.exit("Stopped. What is done is kept: the same command goes on from here.")
    except (GraderError, SandboxError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    results = read(args.results)
    print(table(results))
    sys.exit(not all(map(agrees, results)))


if __name__ == "__main__":
    main()
