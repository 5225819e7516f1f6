"""Writes hand-ins to measure the grader with: right ones in different forms, and wrong ones that train to their end.

    PYTHONPATH=. python tests/grading/make_hand_ins.py build/hand_ins/right --right 10
    PYTHONPATH=. python tests/grading/make_hand_ins.py build/hand_ins/wrong --wrong 2
    time python -m grading.autograder build/hand_ins/right --jobs 2 --output build/measured

Each is whole: code, a report and two LoRAs of its own, whose matrices are drawn by lot.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from safetensors.numpy import save

from finetune.numbers import natural_int
from hand_ins import LORA_1, LORA_2, lora_tensors, with_text, write_zip
from test_checks import RIGHT, WRONG

# Wrong texts that run: the training comes to its end, and the pictures do not follow.
TRAINS = ("computed and thrown away", "in reverse", "one convolution for all", "the mid result from a skip")


def spread(rows: list[tuple], number: int) -> list[tuple]:
    """So many of the rows, from all over them; some twice where there are fewer."""
    return [rows[i * len(rows) // number if number <= len(rows) else i % len(rows)] for i in range(number)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--right", type=natural_int, default=0, help="so many right ones")
    parser.add_argument("--wrong", type=natural_int, default=0, help="so many wrong ones")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    wrong = [row for row in WRONG if row[0] == "3" and row[1] in TRAINS]
    chosen = [("right", row) for row in spread(RIGHT, args.right)] + [
        ("wrong", row) for row in spread(wrong, args.wrong)
    ]
    for i, (kind, (todo, form, *_, text)) in enumerate(chosen):
        files = with_text(todo, textwrap.dedent(text))
        files |= {name: save(lora_tensors(2 * i + j)) for j, name in enumerate((LORA_1, LORA_2))}
        path = write_zip(files, args.folder / f"{kind}_{i:03}.zip")
        print(f"{path}: TODO ({todo}) {form}")


if __name__ == "__main__":
    main()
