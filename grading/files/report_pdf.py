"""Looks into a report that nobody vouches for: is it a PDF that can be read, with at most two pages?

A damaged or crafted PDF can keep a reader busy for hours: it is read in a process of its own, this module as a program,
with limits on computing time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows: there nothing limits computing and memory, only waiting
    resource = None

from pypdf import PdfReader

from .items import shown

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
MAX_PAGES = 2
MAX_BYTES = 20 * MB
MAX_SECONDS = 20  # of computing
MAX_WAIT_SECONDS = 600.0  # for these on a busy machine
MAX_MEMORY = 2_000 * MB
EXPORT_AGAIN = "export it as a PDF again"


@dataclass(frozen=True)
class PdfReport:
    """What is known of a report: where it is not `ok`, `problem` is a sentence that says what to do."""

    ok: bool
    problem: str | None = None
    pages: int | None = None


def page_count(path: Path) -> tuple[int, str | None]:
    """The number of pages, and half a sentence about what is wrong. Whatever pypdf raises passes through."""
    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):  # an owner's password only forbids, and needs none to be opened
        return 0, "is encrypted: save it without a password"
    pages = len(reader.pages)
    if pages > MAX_PAGES:
        return pages, f"has {pages} pages, of at most {MAX_PAGES}: shorten it"
    contents = [page.get_contents() for page in reader.pages]
    if not any(content is not None and content.get_data().strip() for content in contents):
        return pages, f"has nothing on its pages: {EXPORT_AGAIN}"
    return pages, None


def read_report(path: Path) -> PdfReport:
    """Reads the PDF in this process."""
    try:
        pages, problem = page_count(path)
    except Exception as error:  # what pypdf meets in a damaged file can raise nearly anything
        reason = shown(f"{type(error).__name__}: {error}")
        return PdfReport(False, f"{shown(path.name)} cannot be read as a PDF ({reason}): {EXPORT_AGAIN}.")
    return PdfReport(problem is None, problem and f"{shown(path.name)} {problem}.", pages or None)


def inspect_report(path: Path) -> PdfReport:
    """Reads a report in another process. Raises nothing for what the file may be: that is the result's `problem`.

    Raises:
        TimeoutError: if this machine is too busy to read it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        return PdfReport(False, f"{shown(path.name)} cannot be read ({error.strerror}): {EXPORT_AGAIN}.")
    if b"%PDF-" not in start:
        return PdfReport(False, f"{shown(path.name)} is not a PDF: {EXPORT_AGAIN}.")
    if size > MAX_BYTES:
        problem = f"{shown(path.name)} has {size / MB:.0f} MB, of at most {MAX_BYTES // MB}: make its pictures smaller."
        return PdfReport(False, problem)
    command = [sys.executable, "-m", "grading.files.report_pdf", str(path.resolve()), str(MAX_SECONDS), str(MAX_MEMORY)]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=MAX_WAIT_SECONDS)
        return PdfReport(**json.loads(run.stdout))
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"This machine is too busy: reading {shown(path.name)} did not get {MAX_SECONDS} seconds of computing time "
            f"in {MAX_WAIT_SECONDS:.0f}. Try again when it is not."
        ) from None
    except ValueError:
        problem = (
            f"{shown(path.name)} cannot be read with {MAX_SECONDS} seconds and {MAX_MEMORY // MB} MB: {EXPORT_AGAIN}."
        )
        return PdfReport(False, problem)


def limit_this_process(seconds: int, memory: int) -> None:
    """Computing time and memory, as far as this system knows limits on them."""
    if resource:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform == "linux":  # macOS takes no limit on it
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main() -> None:
    path, seconds, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limit_this_process(seconds, memory)
    print(json.dumps(asdict(read_report(path))))


if __name__ == "__main__":
    main()
