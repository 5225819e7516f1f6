"""Takes the texts of the TODO places out of a hand-in that nobody vouches for."""

from __future__ import annotations

from pathlib import Path

from .banners import TODO_FILES, BannerError, read_parts

# A file of code has shorter lines and fewer of them; searching longer ones for banners could take hours.
MAX_FILE_BYTES, MAX_LINE_CHARACTERS = 300_000, 1000
# More text than this between the banners cannot be a solution, but could hold weights.
MAX_TEXT_BYTES = 20_000


def oversized(path: Path) -> str | None:
    """Half a sentence about a file of code that is too large to be read."""
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"has {path.stat().st_size:,} bytes, of at most {MAX_FILE_BYTES:,}"
    lines = path.read_bytes().splitlines()  # of characters, as a comment in Hangul has three bytes for each
    longest = max((len(line.decode("utf-8", "replace")) for line in lines), default=0)
    if longest > MAX_LINE_CHARACTERS:
        return f"has a line of {longest:,} characters, of at most {MAX_LINE_CHARACTERS:,}"
    return None


def take_texts(task_1: Path, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, str]:
    """The five texts of a hand-in by TODO number.

    Raises:
        BannerError: if the banners are damaged, or a file or a text is too large; the message says what to do.
    """
    for name in TODO_FILES:
        path = task_1 / name
        problem = oversized(path) if path.is_file() else "is missing"
        if problem:
            raise BannerError(f"{name} {problem}: restore it as it was handed out, and fill in the TODO places.")
    parts = read_parts(task_1)
    for todo, text in parts.items():
        size = len(text.encode("utf-8"))
        if size > max_bytes:
            raise BannerError(
                f"The text of TODO ({todo}) has {size:,} bytes, of at most {max_bytes:,}: write only what is asked for."
            )
    return parts
