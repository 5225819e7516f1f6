"""Measures what caching the encodings of a data set costs, by its size: time, disk, memory, and the start of a run.

    python benchmarks/caching.py                                # the embedded base at 128 px, rendered Fill50K
    python benchmarks/caching.py --size sd14 --resolution 512   # encodings of Stable Diffusion 1.4's shapes

Every figure is taken in a fresh process: one that encodes, and two that find the encodings and read batches. The last
one counts: after a long encoding, the first has to read Python's libraries from the disk again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from finetune.argument_types import picture_size, positive_int
from models import ROOT, build_base, device_name

MIB = 2**20


def prepare(size: str, samples: int, resolution: int, folder: Path, batches: int) -> dict[str, float]:
    """Does what train.py does before its first step, then reads batches; seconds since this process began, and MiB.

    `encodings_seconds` is the part of the encodings: making or finding them, and reading the first one.
    `own_mib` is what the process holds at its end, without the pages of files: those that it has read of the encodings
    count as its memory too as long as nobody else wants the room.
    """
    sys.path.insert(0, str(ROOT / "task_1_controlnet"))
    import torch
    from accelerate import Accelerator

    from fill50k import load_data
    from finetune.data.cache import Samples, load_encodings
    from finetune.setup import precision_here

    accelerator = Accelerator(mixed_precision=precision_here("auto"))
    base = build_base(size)
    data = load_data("rendered", "image", "conditioning_image", "text", samples)
    base.to(accelerator.device)
    start = time.perf_counter()
    encodings = load_encodings(base, data, resolution, folder, accelerator)
    dataset = Samples(data, resolution, encodings)
    dataset[0]
    encodings_seconds = time.perf_counter() - start
    seconds = time.time() - psutil.Process().create_time()
    for index in torch.randint(len(dataset), (batches * 16,), generator=torch.Generator().manual_seed(0)).tolist():
        dataset[index]
    memory = psutil.Process().memory_info()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "encodings_seconds": encodings_seconds,
        "peak_mib": peak / MIB,
        "own_mib": (memory.rss - memory.shared) / MIB,
    }


def measure(size: str, samples: int, resolution: int, batches: int = 200) -> dict[str, float]:
    """One line of the table: encodes into an empty folder, then starts again on what is there."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for _ in range(3):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh_process:
                runs.append(fresh_process.submit(prepare, size, samples, resolution, Path(folder), batches).result())
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    first, _, cached = runs
    return {
        "samples": samples,
        "encoding_seconds": first["seconds"],
        "disk_mib": disk / MIB,
        "start_seconds": cached["seconds"],
        "finding_seconds": cached["encodings_seconds"],
        "peak_mib_encoding": first["peak_mib"],
        "peak_mib_cached": cached["peak_mib"],
        "own_mib_encoding": first["own_mib"],
        "own_mib_cached": cached["own_mib"],
    }


def table(results: list[dict[str, float]]) -> str:
    lines = [
        "| samples | encoding, s | samples a second | disk, MiB | start when cached, s: all, encodings "
        "| peak MiB: encoding, cached | without pages of files |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        rate = r["samples"] / r["encoding_seconds"]
        peaks, own = (f"{r[f'{kind}_mib_encoding']:.0f}, {r[f'{kind}_mib_cached']:.0f}" for kind in ("peak", "own"))
        cells = [f"{r['samples']:,}", f"{r['encoding_seconds']:.0f}", f"{rate:.0f}", f"{r['disk_mib']:.0f}"]
        lines.append(
            f"| {' | '.join(cells)} | {r['start_seconds']:.1f}, {r['finding_seconds']:.1f} | {peaks} | {own} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny_sd", "sd14"], default="tiny_sd", help="of the encodings")
    parser.add_argument("--samples", type=positive_int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--resolution", type=picture_size, default=128, help="px")
    parser.add_argument("--output", type=Path, default=None, help="write the figures to this JSON file too")
    args = parser.parse_args()
    results = [measure(args.size, samples, args.resolution) for samples in args.samples]
    print(f"{device_name()}, {args.size}, {args.resolution} px\n\n{table(results)}")
    if args.output:
        args.output.write_text(
            json.dumps({"device": device_name(), "size": args.size, "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
