"""Processes that `gpu_rows.py` starts beside itself: tests, and recipes that take minutes to compile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]
READY = "ready"


class Child:
    """A process in a session of its own, whose output goes to a file; it can be paused, and is ended whole."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        self.paused_seconds, self.paused_at = 0.0, None
        with log.open("w") as output:
            self.process = subprocess.Popen(
                list(command), cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, text=True,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it may have ended meanwhile
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        self.paused_at = time.monotonic()

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)
        if self.paused_at is not None:
            self.paused_seconds += time.monotonic() - self.paused_at
        self.paused_at = None

    def end(self) -> None:
        self.signal(signal.SIGKILL)

    def wait(self, seconds: float, condition: Callable[[], bool] = lambda: False) -> bool:
        """Whether within so many seconds the condition came to hold, or else the process's end."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Pytest(Child):
    """A run of pytest."""

    def __init__(self, log: Path, folder: Path, *arguments: str) -> None:
        self.report = folder / f"{log.stem}.xml"
        flags = ["-v", "--tb=short", "-p", "no:cacheprovider", "--basetemp", str(folder / log.stem)]
        flags += ["-p", "gpu.processes"]  # as a plugin, for the function below
        command = [sys.executable, "-m", "pytest", *arguments, *flags, f"--junitxml={self.report}"]
        path = os.pathsep.join([str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        super().__init__(command, log, PYTHONPATH=path, **settings)

    def results(self) -> list[dict[str, Any]]:
        """Name, outcome and seconds of each test and what it recorded; without an end the lines that were printed.

        Raises:
            RuntimeError: if no test was run.
        """
        if not self.report.exists():
            lines = [line for line in self.said().splitlines() if "::" in line and not line.startswith("Why ")]
            if not lines:
                raise RuntimeError(f"No test was run:\n{self.said()[-4000:]}")
            return [{"name": line, "outcome": "not finished" if line.endswith(" ") else ""} for line in lines]
        return [self.result(case) for case in ElementTree.parse(self.report).iter("testcase")]

    def result(self, case: ElementTree.Element) -> dict[str, Any]:
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        texts = [f"{child.get('message')}\n{child.text}"[:3000] for child in case if child.tag in kinds]
        properties = {one.get("name"): one.get("value") for one in case.iter("property")}
        return {
            "name": case.get("name"),
            "outcome": kinds[0] if kinds else "passed",
            "seconds": float(case.get("time")),
            "recorded": properties,
            "why": texts,
        }


def pytest_runtest_logreport(report: Any) -> None:
    """Prints why a test failed at once: pytest does it at its end, which the time limit may cut off."""
    if report.failed:
        print(f"\nWhy {report.nodeid} failed:\n{report.longreprtext}", flush=True)


def tests_table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| test | outcome | s | recorded |", "|---|---|---|---|"]
    for result in results:
        recorded = ", ".join(f"{name} {value}" for name, value in result.get("recorded", {}).items())
        seconds = f"{result['seconds']:.1f}" if "seconds" in result else ""
        lines.append(f"| {result['name']} | {result['outcome']} | {seconds} | {recorded} |")
    return "\n".join(lines)


class CompiledRecipe(Child):
    """One recipe of `train_step.py`, which gets everything ready and then waits to be told that it may be timed."""

    def __init__(self, log: Path, recipe: str, size: str, batch_size: int, steps: int) -> None:
        self.recipe, self.timed = recipe, False
        flags = ["--size", size, "--batch_size", str(batch_size), "--steps", str(steps), "--compiled", recipe]
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_rows.py"), *flags]
        super().__init__(command, log)

    def is_ready(self) -> bool:
        return READY in self.said().splitlines()

    def result(self, seconds: float) -> dict[str, Any]:
        """What `measure` found, if all is ready within so many seconds; `paused` of the first step it was paused for.

        Raises:
            RuntimeError: if it failed, with what it said.
            TimeoutError: if it was not ready in time.
        """
        self.timed, deadline = True, time.monotonic() + seconds
        if not self.wait(seconds, self.is_ready):
            raise TimeoutError(f"{self.recipe} was not compiled in time:\n{self.said()[-1000:]}")
        if self.process.poll() is None:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.wait(deadline - time.monotonic())
        if self.process.poll() != 0:
            raise RuntimeError(f"{self.recipe} ended with {self.process.poll()}:\n{self.said()[-4000:]}")
        figures = [line for line in self.said().splitlines() if line.startswith("{")]  # others may be warnings
        return {**json.loads(figures[-1]), "paused": self.paused_seconds}


def tell_and_wait() -> None:
    """In that process: all is ready; returns when it may be timed."""
    print(f"\n{READY}", flush=True)
    sys.stdin.readline()
