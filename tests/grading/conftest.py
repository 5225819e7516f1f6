"""What the tests of the grader share."""

from __future__ import annotations

import gc
import os
from typing import Iterator

import pytest

from forked_warm import forked_warm_python
from grading.autograder.alignment import CONFIG, WEIGHTS, Shared
from grading.autograder.student_code import make_readable
from grading.sandbox.start import SOCKET, warm_python
from hand_ins import save_weights
from processes import FORKS
from stand_ins import ready_at_once, same_for_all


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> None:
    """Nor are they looked through for any."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def rare_collections(imports_are_no_garbage) -> Iterator[None]:
    """Models are many objects that live: looking for garbage whenever 700 are new takes a seventh of the time."""
    before = gc.get_threshold()
    gc.set_threshold(10_000, 20, 50)
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="session")
def warm_address() -> Iterator[str | None]:
    """Where a warm Python with PyTorch listens, one for all tests of this process; None where there cannot be one."""
    if FORKS and os.geteuid() == 0:
        with forked_warm_python() as address:
            yield address
        return
    from grading.autograder.run import PLAIN_ENVIRONMENT

    with warm_python(PLAIN_ENVIRONMENT) as there:
        address = os.environ.pop(SOCKET) if there else None  # only for the tests that ask for it
        yield address
        if there:
            os.environ[SOCKET] = address


@pytest.fixture
def warm_programs(warm_address, monkeypatch) -> None:
    """The programs of a test do not import PyTorch again."""
    if warm_address:
        monkeypatch.setenv(SOCKET, warm_address)


@pytest.fixture
def graders(monkeypatch):
    """Lets a stand-in grade."""

    def use(results: dict, before: str = "") -> dict:
        monkeypatch.setattr("grading.autograder.run.ready", ready_at_once)
        monkeypatch.setattr("grading.autograder.run.grade_into.__defaults__", (same_for_all(results, before),))
        return results

    return use


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Shared:
    """What the trainings share, as small as can be."""
    folder = tmp_path_factory.mktemp("shared")
    for name in ("tiny_sd", "cache", "controlnet"):
        (folder / name).mkdir()
    (folder / "controlnet" / CONFIG).write_text('{"layers": 1}')
    save_weights(folder / "controlnet" / WEIGHTS)
    make_readable(folder)
    return Shared(folder)
