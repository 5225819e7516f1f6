"""What a user should know of their data while it is read, said once."""

from __future__ import annotations

import os

from torch.utils.data import get_worker_info

_said: set[str] = set()


def say_once(text: str, kind: str | None = None) -> None:
    """Prints `text` if nothing of its `kind` (by default: the text itself) was said; one of several processes does."""
    worker = get_worker_info()
    first = os.environ.get("RANK", "0") == "0" and (worker is None or worker.id == 0)
    if first and (kind or text) not in _said:
        _said.add(kind or text)
        print(f"Note: {text}")


def some(names: list[str], limit: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
