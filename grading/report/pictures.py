"""The report's pictures: found, checked, and scaled to what print needs."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from PIL import Image, ImageOps, UnidentifiedImageError

from .words import ReportError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DPI = 300
MM_PER_INCH = 25.4
# Kept in memory, px on the longer side: twice what the largest place in the report prints.
KEPT_SIDE = 1000
MIN_SIDE = 16
MAX_PIXELS = 60_000_000
MAX_ASPECT = 3.0


@dataclass(frozen=True)
class Picture:
    """A picture of the report and the size that it is printed in at full scale, mm."""

    image: Image.Image
    width: float
    height: float


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10.png after 9.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def list_pictures(chosen: str | Sequence[str], folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, or those of a list; paths start at `folder`.

    Raises:
        ReportError: if there is no such folder, or no picture in it.
    """
    if not isinstance(chosen, str):
        return [folder / name for name in chosen]
    where = folder / chosen
    if not where.is_dir():
        raise ReportError(f"there is no folder {where}")
    files = (path for path in where.iterdir() if not path.name.startswith("."))
    found = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=natural)
    if not found:
        raise ReportError(f"there is no picture in {where}: PNG or JPEG files are looked for")
    return found


def open_picture(path: Path) -> Image.Image:
    """A picture upright, in RGB on white, at most 1000 px on its longer side.

    Raises:
        ReportError: if it is damaged, too large, or of a kind that cannot be printed; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                check_picture(image, path)
                image.draft("RGB", (KEPT_SIDE, KEPT_SIDE))
                return printable(image)
    except UnidentifiedImageError:
        raise ReportError(f"{path} is not a picture that can be read: store it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ReportError(f"{path} is too large: scale it down, print needs {KEPT_SIDE} px at most") from None
    except ReportError:
        raise
    except Exception as error:  # Pillow too: SyntaxError for a broken PNG, OSError for a short one, ...
        raise ReportError(f"{path} is damaged ({error}): store it again") from None


def check_picture(image: Image.Image, path: Path) -> None:
    """Raises ReportError for a picture, not yet decoded, that should not be printed."""
    width, height = image.size
    size = f"{width} x {height} px"
    if width * height > MAX_PIXELS:
        raise ReportError(f"{path} is too large ({size}): scale it down, print needs {KEPT_SIDE} px at most")
    if min(width, height) < MIN_SIDE:
        raise ReportError(f"{path} is too small ({size}): at least {MIN_SIDE} px are needed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ReportError(
            f"{path} is too long and thin ({size}): give a picture at most {MAX_ASPECT:.0f} times as long"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG with a preview in it
        raise ReportError(f"{path} has {image.n_frames} frames: store the one to show as PNG")
    if image.mode.startswith(("I", "F")):
        raise ReportError(f"{path} has more than 8 bits a channel: store it as an 8-bit picture, scaled as you see fit")


def printable(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def at_print_size(picture: Picture, scale: float) -> Image.Image:
    """With 300 dots an inch at `scale` times its size, or fewer if it has fewer."""
    image = picture.image
    width = round(picture.width * scale / MM_PER_INCH * DPI)
    if width >= image.width:
        return image
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str, **settings: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def fit_box(image: Image.Image, width: float, height: float) -> Picture:
    """The picture as large as a box of `width` and `height` mm allows."""
    width = min(width, height * image.width / image.height)
    return Picture(image, width, width * image.height / image.width)


def justified_row(images: Sequence[Image.Image], width: float, gap: float, max_height: float) -> list[Picture]:
    """Pictures of one height, side by side with `gap`, that fill `width` unless they would be too high; mm."""
    aspects = [image.width / image.height for image in images]
    height = min(max_height, (width - gap * (len(images) - 1)) / sum(aspects))
    return [Picture(image, height * aspect, height) for image, aspect in zip(images, aspects)]
