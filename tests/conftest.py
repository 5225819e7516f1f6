"""What every test starts from."""

from __future__ import annotations

import gc
import os

# Before PyTorch is imported: tests run side by side, and what is forked beside threads may wait for them for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# PyTorch and what stands on it are some hundred thousand objects, none of which is garbage: looking through them again
# and again took a sixth of the time of their import, and a seventh of that of two files of tests (docs/log.md).
gc.disable()

from typing import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.run.notes

pytest_plugins = ["cpu_by_file"]


def pytest_collection_finish() -> None:
    """All is imported by now."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """The state of `Accelerator` is the process's: a precision that one test chose must not refuse another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Programs that run in this process may set variables for what they start: the next test must not inherit them.

    The grader's numbers of threads, left behind, made the launchers' processes round otherwise than the forked ones.
    """
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are fastest on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """What was said once is the process's: one test must not silence another."""
    finetune.run.notes._said[:] = bytes(len(finetune.run.notes._said))
