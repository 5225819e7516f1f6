"""After the slowest tests of `--durations`, the CPU seconds of each file's tests, with all the processes they start.

Times by the clock are those of a machine and of what else runs on it; these hardly depend on that.
"""

from __future__ import annotations

import psutil
import pytest

_seconds: dict[str, float] = {}
_until_now = [0.0]


def used() -> float:
    """CPU seconds of this process and its descendants, also of those that have ended."""
    total, this = 0.0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])  # user and system time, its own and of the children it waited for
        except psutil.NoSuchProcess:  # its parent has not had time to wait for it
            continue
    return total


def pytest_collection_finish() -> None:
    _until_now[0] = used()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    yield
    file = item.nodeid.partition("::")[0]
    if nextitem is None or nextitem.nodeid.partition("::")[0] != file:
        before, _until_now[0] = _until_now[0], used()
        _seconds[file] = _seconds.get(file, 0.0) + _until_now[0] - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist tells the process that prints
        session.config.workeroutput["cpu_by_file"] = _seconds


class Controller:
    """What pytest-xdist calls in the process that prints."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        for file, seconds in getattr(node, "workeroutput", {}).get("cpu_by_file", {}).items():
            _seconds[file] = _seconds.get(file, 0.0) + seconds


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Controller())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.durations:
        return
    slowest = sorted(_seconds.items(), key=lambda pair: pair[1], reverse=True)[: config.option.durations]
    terminalreporter.section(f"CPU seconds by file, of {sum(_seconds.values()):.0f}")
    for file, seconds in slowest:
        terminalreporter.write_line(f"{seconds:8.1f} {file}")
