"""Typesets the report: at most two pages, from the student's words and what the run folders hold.

    python -m grading.report --example > report.toml     # a file to fill in, with comments
    python -m grading.report report.toml                 # writes 2024XXXX.pdf, named by the student id in it

Pictures and scores are taken from the folders that report.toml names (paths start where report.toml stands). If
something is missing, the program lists all of it with how to get it, and writes nothing.
"""

from __future__ import annotations

import argparse
import bisect
import io
import json
import shutil
import sys
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Sequence

import typst
from PIL import Image
from pypdf import PdfReader

from finetune.argument_types import file_path

from .content import GAP, ROW_WIDTH, Content, count_words, files_of, read_content, shorten, written
from .pictures import at_print_size, encode
from .words import ReportError, read_words

TEMPLATE = Path(__file__).with_name("report.typ")
EXAMPLE = Path(__file__).with_name("report_example.toml")
FONTS_HELP = "a folder of fonts, for characters that the fonts of the program and of the system lack; may be repeated"
MAX_PAGES = 2
MAX_BYTES = 5_000_000
# Of JPEG; a lower one only where the PDF would be too large.
QUALITIES = (92, 85, 75, 60, 40)


@dataclass(frozen=True)
class Layout:
    """`size` of the type in pt, `scales` of the pictures of Task 1 and of Task 2, `new_page`: Task 2 begins on one."""

    size: float
    scales: tuple[float, float]
    new_page: bool


SCALES = (1.0, 0.9, 0.8, 0.7)
# From the best to the smallest; 8 pt is the smallest type anywhere in the report.
LAYOUTS = [
    Layout(size, (scale, scale), new_page)
    for size, scale in ((10.5, 1), (10, 1), (9.5, 1), (9, 1), (9, 0.9), (8.5, 0.9), (8, 0.9), (8, 0.8), (8, 0.7))
    for new_page in (True, False)
]


def scale_of(section: dict[str, Any], layout: Layout) -> float:
    return layout.scales[section["name"].startswith("Task 2")]


class Typesetter:
    """Compiles the template in a folder of its own, which holds all that the template can read."""

    def __init__(self, folder: Path, fonts: typst.Fonts) -> None:
        self.folder = folder
        self.compiler = typst.Compiler(str(folder / "report.typ"), root=str(folder), font_paths=fonts)

    def write(self, report: dict[str, Any], layout: Layout) -> None:
        sections = [{**section, "scale": scale_of(section, layout)} for section in report["sections"]]
        data = {**report, "sections": sections, "size": layout.size, "new_page": layout.new_page}
        data.update(row_width=ROW_WIDTH, gap=GAP)
        (self.folder / "report.json").write_text(json.dumps(data), encoding="utf-8")

    def fits(self, report: dict[str, Any], layout: Layout) -> bool:
        """Whether the report is at most two pages long."""
        self.write(report, layout)
        length = json.loads(self.compiler.query("<length>", field="value", one=True))
        return length["pages"] <= MAX_PAGES and length["whole"]

    def pdf(self, report: dict[str, Any], layout: Layout) -> bytes:
        self.write(report, layout)
        return self.compiler.compile(format="pdf")


def printed(content: Content, layout: Layout) -> dict[str, tuple[Image.Image, bytes]]:
    """The pictures by their files' names, at the size that print needs, and as PNG, which has no quality."""
    sizes = {name: scale_of(section, layout) for section in content.sections for name in files_of(section)}
    images = {name: at_print_size(content.pictures[name], scale) for name, scale in sizes.items()}
    return {name: (image, encode(image, "PNG")) for name, image in images.items()}


def write_pictures(pictures: dict[str, tuple[Image.Image, bytes]], folder: Path, quality: int) -> None:
    """As PNG or JPEG, whichever is smaller."""
    for name, (image, png) in pictures.items():
        jpeg = encode(image, "JPEG", quality=quality, subsampling=0)
        (folder / name).write_bytes(min(png, jpeg, key=len))


# Fonts


def unprintable(report: dict[str, Any], pdf: bytes) -> str:
    """The characters of the report that its PDF does not show, because no font has them."""
    texts = [report["student_id"], report["name"], *(text for s in report["sections"] for text in written(s))]
    absent = {character for text in texts for character in text}
    for page in PdfReader(io.BytesIO(pdf)).pages:
        absent -= set(unicodedata.normalize("NFC", page.extract_text()))
        if not absent:  # as a rule before the last page, and reading them takes time
            break
    # Marks and joiners merge with the letter that they belong to, and control characters show nothing.
    return "".join(sorted(c for c in absent if unicodedata.category(c)[0] in "LNPS" or unicodedata.category(c) == "Co"))


def choose_fonts(report: dict[str, Any], folder: Path, font_folders: Sequence[Path]) -> Typesetter:
    """With the compiler's own fonts, which are the same everywhere; only if they lack a character, with all others.

    Raises:
        ReportError: if no font has a character.
    """
    for font_folder in font_folders:
        if not font_folder.is_dir():
            raise ReportError(f"There is no folder {font_folder}: correct --fonts.")
    for every in (False, True):  # made one after the other: to look through all fonts of a system takes time
        paths = [str(path) for path in font_folders] if every else []
        typesetter = Typesetter(folder, typst.Fonts(include_system_fonts=every, font_paths=paths))
        missing = unprintable(report, typesetter.pdf(report, LAYOUTS[0]))
        if not missing:
            return typesetter
    names = ", ".join(f"{c} ({unicodedata.name(c, f'U+{ord(c):04X}')})" for c in missing[:5])
    raise ReportError(
        f"No font here can print {names}{' and others' if len(missing) > 5 else ''}: install one that can (for "
        f"Hangul, Noto Sans CJK), or give the folder of one with --fonts."
    )


# Length


def explain_length(report: dict[str, Any], typesetter: Typesetter) -> str:
    """By how many words the report is too long, and where it has the most."""

    def shortened(limit: int) -> dict[str, Any]:
        return {**report, "sections": [shorten(section, limit) for section in report["sections"]]}

    def too_long(limit: int) -> bool:
        return not typesetter.fits(shortened(limit), LAYOUTS[-1])

    counts = count_words(report["sections"])
    total = sum(counts.values())
    limit = bisect.bisect_left(range(1, total), True, key=too_long)
    spare = total - sum(count_words(shortened(limit)["sections"]).values())
    (section, most), *others = counts.most_common()
    return (
        f"The report is about {spare} words too long for {MAX_PAGES} pages, even in the smallest type "
        f"({LAYOUTS[-1].size} pt): it would fit with no text longer than {limit} words. {section} has the most words, "
        f"{most} ({', '.join(f'{name}: {count}' for name, count in others)})."
    )


def choose_layout(report: dict[str, Any], typesetter: Typesetter) -> Layout:
    """The best layout that fits on two pages. Raises ReportError if none does."""
    best = LAYOUTS[0]
    if not typesetter.fits(report, best):
        if not typesetter.fits(report, LAYOUTS[-1]):  # asked before those between, none of which would fit either
            raise ReportError(explain_length(report, typesetter))
        best = next(layout for layout in LAYOUTS[1:] if typesetter.fits(report, layout))
    # One of the two tasks may have room for larger pictures, where it was the other that needed the space.
    larger = [replace(best, scales=(first, second)) for first in SCALES for second in SCALES]
    larger = [layout for layout in larger if min(layout.scales) >= best.scales[0]]
    larger.sort(key=lambda layout: sum(layout.scales), reverse=True)
    return next(layout for layout in larger if typesetter.fits(report, layout))


# The report


def make_report(words_file: Path, font_folders: Sequence[Path] = ()) -> tuple[bytes, str, list[str]]:
    """The PDF of at most two pages and 5 MB, the student id, and notes for the student. Same input, same bytes.

    Args:
        words_file: the student's words, TOML; paths in it start at its folder.
        font_folders: of fonts for characters that the compiler's own do not have, besides those of the system.

    Raises:
        ReportError: with one list of all that is missing or wrong, or, if nothing is, by how much it is too long.
    """
    words, problems = read_words(words_file)
    content = read_content(words, problems)
    if content.problems:
        listing = "\n".join(f"  - {problem}" for problem in content.problems)
        raise ReportError(f"The report is not complete. Missing or wrong:\n{listing}")
    report = {"student_id": words.get("student_id"), "name": words.get("name"), "sections": content.sections}
    with tempfile.TemporaryDirectory(prefix="report-") as name:
        folder = Path(name).resolve()
        shutil.copy(TEMPLATE, folder / "report.typ")
        # Nothing of the layout depends on what the pictures show: until it is known, a dot stands for each.
        for picture in content.pictures:
            Image.new("L", (1, 1)).save(folder / picture, "PNG")
        typesetter = choose_fonts(report, folder, font_folders)
        layout = choose_layout(report, typesetter)
        pictures = printed(content, layout)
        for quality in QUALITIES:
            write_pictures(pictures, folder, quality)
            pdf = typesetter.pdf(report, layout)
            if len(pdf) < MAX_BYTES:
                return pdf, words.get("student_id"), content.notes
    raise ReportError(
        f"The report is larger than {MAX_BYTES / 1e6:g} MB ({len(pdf) / 1e6:.1f} MB): show fewer pictures."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m grading.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", type=file_path, nargs="?", metavar="WORDS.toml", help="your words, and where the pictures are"
    )
    parser.add_argument("--output", type=file_path, help="the PDF (default: STUDENT_ID.pdf in this folder)")
    parser.add_argument("--fonts", type=file_path, action="append", default=[], metavar="FOLDER", help=FONTS_HELP)
    parser.add_argument("--example", action="store_true", help="print a words file to fill in, and stop")
    args = parser.parse_args()
    if args.example:
        sys.stdout.write(EXAMPLE.read_text(encoding="utf-8"))
        return
    if args.words is None:
        parser.error("give your words file; --example prints one to fill in")
    try:
        pdf, student_id, notes = make_report(args.words, args.fonts)
        output = args.output or Path(f"{student_id}.pdf")
        output.write_bytes(pdf)
    except (ReportError, OSError) as error:
        sys.exit(f"Error: {error}")
    for note in notes:
        print(f"Note: {note}")
    pages = len(PdfReader(io.BytesIO(pdf)).pages)
    print(
        f"{output}: {pages} page{'s' if pages > 1 else ''}, {len(pdf) / 1e6:.1f} MB. Look at it before you hand it in."
    )
