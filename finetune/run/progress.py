"""Progress bars for people and for files."""

from __future__ import annotations

import sys
from typing import Any, Callable

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

# What is not a terminal keeps every line, so it gets one this often, in seconds.
SECONDS_A_LINE = 60


class Lines(plain_tqdm):
    """A bar that writes lines, each below the last, in place of one line that is drawn over and over."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def print_line(text: str) -> None:
            if text:
                file.write(f"\n{text}")
                file.flush()

        return print_line

    def set_postfix(self, *args: Any, **kwargs: Any) -> None:
        """What the next line is to say at its end; other bars are drawn anew at once."""
        super().set_postfix(*args, **{**kwargs, "refresh": False})


def progress_bar(*args: Any, **kwargs: Any) -> plain_tqdm:
    """tqdm, with all its arguments: in a terminal or a notebook as always, in a file or a pipe a line now and then."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(*args, **kwargs)
    return Lines(*args, mininterval=SECONDS_A_LINE, maxinterval=SECONDS_A_LINE, **{**kwargs, "leave": True})
