"""A long run of a small model, `share_of_a_run.py STATE_FILE`, alone or as one of the processes that torchrun starts.

Each process sees its share of the same eight samples a step; the clocks of all but the first run fast.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import torch

from tiny_sd.training import long_run
from tiny_sd.training.long_run import LongRun
from tiny_sd.training.together import join, number_of_processes, rank

if __name__ == "__main__":
    join()
    clock = count(step=1 + rank())
    long_run.time.monotonic = lambda: next(clock)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 32), torch.nn.Linear(32, 16)
    )
    samples, wanted = torch.randn(2, 8, 16)
    share = slice(rank(), None, number_of_processes())
    run = LongRun(model, 1e-2, 100, Path(sys.argv[1]), seconds=6)
    while not run.done:
        run.update((model(samples[share]) - wanted[share]).square().mean())
