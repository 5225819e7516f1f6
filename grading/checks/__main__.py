"""Checks the five TODO places one by one, by what they do, and says what is wrong in words that help.

    python -m grading.checks                    # the code in task_1_controlnet/
    python -m grading.checks --task-1 FOLDER    # another copy

The exit status is 1 if something is wrong. What is asked wrongly is answered before PyTorch is imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune.argument_types import file_path, seed_int

from ..handed_out.banners import TODOS, BannerError, read_parts


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.checks", description=__doc__.splitlines()[0])
    parser.add_argument("--task-1", type=file_path, default=Path("task_1_controlnet"), help="folder of Task 1's code")
    parser.add_argument("--todo", choices=TODOS, nargs="+", default=TODOS, help="only these places")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the inputs")
    args = parser.parse_args()
    if not args.task_1.is_dir():
        sys.exit(f"There is no folder {args.task_1}: start this in the repository's root, or name yours with --task-1.")
    try:
        parts = read_parts(args.task_1)
    except BannerError as error:
        sys.exit(str(error))
    import torch

    from .run import check_all, report

    torch.set_num_threads(1)
    results = check_all({todo: parts[todo] for todo in args.todo}, args.seed)
    print(report(results))
    sys.exit(any(not result.passed for result in results))


if __name__ == "__main__":
    main()
