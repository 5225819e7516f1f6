"""Takes text and pictures out of a report that nobody vouches for.

A damaged or crafted PDF can keep a reader busy for hours, or fill the memory: it is read in a process of its own, this
module as a program, with limits on both. Of each picture only a thumbnail comes back, of so many bytes.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from ..files.items import shown
from ..files.report_pdf import MAX_BYTES, MAX_MEMORY, MAX_SECONDS, MAX_WAIT_SECONDS, MB, ROOT, limit_this_process

SIDE = 64  # of a thumbnail, px
MAX_PAGES, MAX_PICTURES, MAX_CHARACTERS = 10, 100, 40_000
MIN_SIDE, MAX_PIXELS = 24, 30_000_000
# The compressions that PDF writers use for pictures, but JPEG 2000 and fax, whose decoders are larger.
FILTERS = {"/DCTDecode", "/FlateDecode", "/LZWDecode", "/RunLengthDecode", "/ASCII85Decode", "/ASCIIHexDecode"}


class ReportUnreadable(ValueError):
    """Nothing is known of a report; the message is half a sentence that says why."""


@dataclass(frozen=True)
class Contents:
    """The text of a report, and its pictures as thumbnails of shape (64, 64, 3), bytes."""

    text: str
    pictures: tuple[np.ndarray, ...]


def filters_of(image: Any) -> set[str]:
    found = image["/Filter"] if "/Filter" in image else []
    return set(found if isinstance(found, list) else [found])


def is_worth_decoding(image: Any) -> bool:
    """By its header: of a kind that is decoded here, no line or dot, and not too large."""
    width, height = int(image["/Width"]), int(image["/Height"])
    return min(width, height) >= MIN_SIDE and width * height <= MAX_PIXELS and filters_of(image) <= FILTERS


def thumbnails(page: Any) -> Iterator[bytes]:
    """The pictures of a page that can be read, on white, as RGB of 64 by 64 px."""
    from PIL import Image

    for name in page.images.keys():  # a list, where the picture lies in a form, such as an included figure
        try:
            image = object_of(page, [name] if isinstance(name, str) else name)
            if image is not None and is_worth_decoding(image):
                picture = page.images[name].image.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture)
                yield white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
        except MemoryError:
            raise
        except Exception as error:  # a damaged picture can raise nearly anything; the others may be whole
            print(f"{name} is left out: {type(error).__name__}", file=sys.stderr)


def object_of(page: Any, names: Sequence[str]) -> Any:
    """A picture's header, found by its names from form to form; None for one that stands in the page's own text."""
    found = page
    for name in names:
        try:
            found = found["/Resources"]["/XObject"][name]
        except KeyError:
            return None
    return found


def read(path: Path) -> dict[str, Any]:
    """The report's text and its thumbnails in base 64, or the problem, read in this process."""
    from pypdf import PdfReader

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return {"problem": "is encrypted"}
        text, pictures = "", []
        for page in reader.pages[:MAX_PAGES]:
            text += page.extract_text()[:MAX_CHARACTERS] + "\n"
            for thumbnail in thumbnails(page):
                if len(pictures) < MAX_PICTURES:
                    pictures.append(base64.b64encode(thumbnail).decode())
        return {"text": text[:MAX_CHARACTERS], "pictures": pictures}
    except MemoryError:
        return {"problem": f"needs more than {MAX_MEMORY // MB} MB to be read"}
    except Exception as error:  # what pypdf meets in a damaged file can raise nearly anything
        return {"problem": f"cannot be read ({shown(f'{type(error).__name__}: {error}')})"}


def contents_of(answer: Any) -> Contents:
    """What the reading process said, which is no more to be trusted than what it read. Raises ReportUnreadable."""
    try:
        if "problem" in answer:
            raise ReportUnreadable(str(answer["problem"])[:300])
        pictures = [np.frombuffer(base64.b64decode(one), np.uint8) for one in answer["pictures"][:MAX_PICTURES]]
        text = str(answer["text"])[:MAX_CHARACTERS]
        return Contents(text, tuple(one.reshape(SIDE, SIDE, 3) for one in pictures))
    except (TypeError, KeyError) as error:
        raise ReportUnreadable(f"cannot be read ({type(error).__name__})") from None


def look_into(path: Path) -> Contents:
    """Reads a report in another process.

    Raises:
        ReportUnreadable: if it cannot be read, within the limits.
        TimeoutError: if this machine is too busy.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ReportUnreadable(f"has more than {MAX_BYTES // MB} MB")
        command = [sys.executable, "-m", "grading.compare.look_into_pdf", str(path.resolve())]
        # In a session of its own: Ctrl-C must not end it, or the report would be called one that cannot be read.
        run = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=MAX_WAIT_SECONDS, start_new_session=True)
        answer = json.loads(run.stdout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"This machine is too busy to read {shown(path.name)}: try again when it is not.") from None
    except OSError as error:
        raise ReportUnreadable(f"cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError):  # it was ended
        raise ReportUnreadable(f"cannot be read with {MAX_SECONDS} s and {MAX_MEMORY // MB} MB") from None
    return contents_of(answer)


def main() -> None:
    limit_this_process(MAX_SECONDS, MAX_MEMORY)
    print(json.dumps(read(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
