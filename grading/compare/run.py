"""Shows which hand-ins of a folder are alike, and in what: LoRAs, pictures and words of the reports, TODO texts.

    python -m grading.compare FOLDER --output build/compare

writes index.html, a page with the pairs and what they have in common, the strongest first, and likeness.json. It
accuses nobody: a person looks, asks, and decides. Hand-ins are found as `make grade` finds them, whose page has the
same section. What was read of a hand-in is kept in the folder work/: a second start goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Mapping

from finetune.argument_types import file_path, positive_int
from finetune.run.progress import progress_bar

from ..files.collection import hand_ins, left_out
from ..grades.results import write_atomically
from ..grades.teacher_page import STYLE
from ..sandbox.cores import usable_cores
from .facts import Facts, kept_facts
from .likeness import Comparison, section
from .pairs import compare

INTERRUPTED = "Stopped. What was read is kept: the same command goes on from there."


def read_all(found: Mapping[str, Path], work: Path, jobs: int) -> dict[str, Facts]:
    """The facts of all hand-ins by name, with progress and an estimate of what is left."""
    work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {name: pool.submit(kept_facts, path, work) for name, path in found.items()}
        try:
            bar = progress_bar(waiting.items(), desc="Reading hand-ins", unit="hand-in")
            return {name: future.result() for name, future in bar}
        except BaseException:  # what has not begun is not wanted any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compare_all(found: Mapping[str, Path], work: Path, jobs: int) -> Comparison:
    """Compares hand-ins by name.

    Args:
        work: the folder that keeps what was read.
        jobs: so many hand-ins are read at the same time.
    """
    return compare(read_all(found, work, jobs), work)


def likeness_section(found: Mapping[str, Path], work: Path, jobs: int, anchors: Mapping[str, str]) -> str:
    """What hand-ins have in common, for the teacher's page, as HTML; prints it in short."""
    comparison = compare_all(found, work, jobs)
    print(said(comparison), flush=True)
    return section(comparison, anchors)


def page(comparison: Comparison) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>What hand-ins have in common</title>'
        f"<style>{STYLE}</style></head><body>{section(comparison)}</body></html>\n"
    )


def write(comparison: Comparison, output: Path) -> None:
    write_atomically(output / "likeness.json", json.dumps(asdict(comparison), indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / "index.html", page(comparison))


def said(comparison: Comparison) -> str:
    """The pairs in a few lines."""
    lines = [f"{len(comparison.pairs)} pairs of {comparison.compared} hand-ins have something in common:"]
    for pair in comparison.pairs[:20]:
        lines.append(f"- {pair.first} and {pair.second}: {pair.likenesses[0].kind}: {pair.likenesses[0].what}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=file_path, help="a folder of hand-ins, archives or unpacked ones")
    parser.add_argument("--output", type=file_path, default=Path("build/compare"), help="for the page (%(default)s)")
    parser.add_argument("--jobs", type=positive_int, default=usable_cores(), help="hand-ins at a time (%(default)s)")
    args = parser.parse_args()
    try:
        found = hand_ins(args.folder)
        if len(found) < 2:
            raise ValueError(f"{args.folder} has only one hand-in: name a folder with several.")
        print(*(f"{sentence}\n" for sentence in left_out(args.folder)), sep="", end="")
        comparison = compare_all(found, args.output / "work", args.jobs)
        write(comparison, args.output)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(f"{said(comparison)}\nThe page: {args.output / 'index.html'}")
