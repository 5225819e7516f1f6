"""Takes the computing time of comparing many made hand-ins, whose two LoRAs each are as large as the scripts make them.

    python tests/grading/measurements/time_compare.py --count 100

It needs 40 MB of disk for each, below --output, and leaves nothing there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from calibrate_compare import REPORTS, todo_files
from PIL import Image
from safetensors.numpy import save

from finetune.argument_types import positive_int
from finetune.run.progress import progress_bar
from grading.compare.pairs import compare
from grading.compare.run import read_all
from grading.files.lora_modules import known_bases
from grading.sandbox.cores import usable_cores
from hand_ins import LORA_1, LORA_2, PDF, hand_in, write_zip
from made_pictures import pdf_of, png


def large_lora(seed: int) -> bytes:
    """Random numbers in the shapes of a LoRA of the scripts: rank 32, all layers of the embedded base."""
    source = np.random.default_rng(seed)
    part = {"unet": (".to_", ".proj_", ".ff.", ".conv1", ".conv2"), "text_encoder": (".self_attn.",)}
    tensors = {}
    for name, shape in ((f"{p}.{m}", s) for p, own in known_bases()[1].shapes.items() for m, s in own.items()):
        if any(words in name for words in part[name.partition(".")[0]]):
            a, b = (32, *shape[1:]), (shape[0], 32, *[1] * (len(shape) - 2))
            tensors[f"{name}.lora_A.weight"] = source.normal(size=a).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = source.normal(size=b).astype(np.float32)
    return save(tensors)


def take_time(count: int, output: Path) -> None:
    """Prints the computing time, of this process and its children, that comparing made hand-ins takes."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as name:
        folder, found = Path(name).resolve(), {}
        for i in progress_bar(range(count), desc="Making hand-ins", unit="hand-in"):
            pictures = [Image.effect_noise((128, 128), 60 + j).convert("RGB") for j in range(28)]
            report = pdf_of(REPORTS[i % len(REPORTS)], pictures, folder / "typeset", png)
            files = {LORA_1: large_lora(2 * i), LORA_2: large_lora(2 * i + 1), PDF: report}
            found[str(i)] = write_zip(hand_in(**todo_files(i), **files), folder / f"{i}.zip")
        start, clock = os.times(), time.monotonic()
        facts = read_all(found, folder / "work", jobs=usable_cores())
        read = os.times()
        compare(facts, folder / "work")
        end = os.times()
    for name, first, last in (("reading", start, read), ("comparing", read, end)):
        print(f"{name}: {sum(last[:4]) - sum(first[:4]):.0f} s of computing")
    print(f"by the clock: {time.monotonic() - clock:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=positive_int, default=100, help="hand-ins")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="a folder on a disk with room")
    args = parser.parse_args()
    take_time(args.count, args.output)


if __name__ == "__main__":
    main()
