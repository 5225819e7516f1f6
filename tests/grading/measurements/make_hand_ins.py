"""Writes hand-ins to measure the grader with: right ones in different forms, wrong ones, and broken and hostile ones.

    python tests/grading/measurements/make_hand_ins.py build/hand_ins/right --right 10
    python tests/grading/measurements/make_hand_ins.py build/hand_ins/wrong --trained 2
    python tests/grading/measurements/make_hand_ins.py build/course --right 70 --wrong 20 --broken 10   # a whole course
    time python -m grading.autograder build/hand_ins/right --jobs 2 --output build/measured

Each but the broken ones is whole: code, a report and two LoRAs of its own, whose matrices are drawn by lot.
"""

from __future__ import annotations

import argparse
import pickle
import textwrap
from pathlib import Path

import paths  # noqa: F401 (which lets the others be found)
from safetensors.numpy import save

from finetune.argument_types import natural_int
from hand_ins import LORA_1, LORA_2, PDF, hand_in, lora_tensors, with_text, write_zip
from solutions import RIGHT, WRONG

# Wrong texts that run: the training comes to its end, and the pictures do not follow.
TRAINS = ("computed and thrown away", "in reverse", "one convolution for all", "the mid result from a skip")


def spread(rows: list[tuple], number: int) -> list[tuple]:
    """So many of the rows, from all over them; some twice where there are fewer."""
    return [rows[i * len(rows) // number if number <= len(rows) else i % len(rows)] for i in range(number)]


def broken() -> list[tuple[str, bytes | dict[str, bytes]]]:
    """What a course hands in besides; each is either one zip's bytes or the files in it."""
    own = "import os, pathlib\n"
    return [
        ("no report", hand_in(**{PDF: None})),
        ("one LoRA", hand_in(**{LORA_2: None})),
        ("a LoRA that breaks off", hand_in(**{LORA_1: save(lora_tensors(1))[:5000]})),
        ("weights that are a pickle", hand_in(**{LORA_1: pickle.dumps({"weight": [1.0]})})),
        ("no zip", b"I forgot the file."),
        ("an empty zip", {}),
        ("a path that leads out", {**hand_in(), "../out.txt": b"out"}),
        ("text that is no Python", with_text("1", "module = = 1")),
        ("writes into the grader's results", with_text("1", f"{own}pathlib.Path('results.json').write_text('20')")),
        ("reads the machine", with_text("3", f"{own}raise SystemExit(sorted(os.environ))")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--right", type=natural_int, default=0, help="so many right ones")
    parser.add_argument("--wrong", type=natural_int, default=0, help="so many of all kinds of wrong ones")
    parser.add_argument("--trained", type=natural_int, default=0, help="so many wrong ones that train to their end")
    parser.add_argument("--broken", type=natural_int, default=0, help="so many broken and hostile ones")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    trains = [row for row in WRONG if row[0] == "3" and row[1] in TRAINS]
    chosen = [
        *(("right", row) for row in spread(RIGHT, args.right)),
        *(("wrong", row) for row in spread(WRONG, args.wrong)),
        *(("wrong", row) for row in spread(trains, args.trained)),
    ]
    for i, (kind, (todo, form, *_, text)) in enumerate(chosen):
        files = with_text(todo, textwrap.dedent(text))
        files |= {name: save(lora_tensors(2 * i + j)) for j, name in enumerate((LORA_1, LORA_2))}
        path = write_zip(files, args.folder / f"{kind}_{i:03}.zip")
        print(f"{path}: TODO ({todo}) {form}")
    for i, (what, content) in enumerate(spread(broken(), args.broken)):
        path = args.folder / f"broken_{i:03}.zip"
        path.write_bytes(content) if isinstance(content, bytes) else write_zip(content, path)
        print(f"{path}: {what}")


if __name__ == "__main__":
    main()
