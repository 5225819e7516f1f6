"""Pictures with texts in a folder or a zip archive: one reader for every training, whatever the files are called.

The samples are listed by one of `LISTINGS`, each line one of them, or by a .txt beside each picture.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import posixpath
import unicodedata
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple, Sequence, Tuple

from PIL import Image

from .files import Files, open_files
from .images import load_image
from .notes import say_once, some

# The files that list samples, and how each calls our columns; where a folder has several, the first counts.
LISTINGS: dict[str, dict[str, str]] = {
    "train.jsonl": {},  # fusing/fill50k
    "prompt.json": {"image": "target", "conditioning_image": "source", "text": "prompt"},  # ControlNet's own Fill50K
    "metadata.jsonl": {"image": "file_name"},  # imagefolder, and the next two
    "metadata.csv": {"image": "file_name"},
    "metadata.parquet": {"image": "file_name"},
}
# Beside fusing/fill50k's train.jsonl, the columns' pictures are packed in archives of these names.
PARTS = {"image": "images", "conditioning_image": "conditioning_images"}
OTHER_SPLITS = {"test", "testing", "val", "valid", "validation", "dev", "eval"}
PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
LAYOUT = (
    'pictures, and beside them a metadata.jsonl with lines such as {"file_name": "cat.png", "text": "a cat"}, '
    "a metadata.csv or metadata.parquet with these columns, or a .txt for each picture"
)


class Row(NamedTuple):
    """One line: where it is, its listing and the folder that its names start from, and what it says."""

    place: str
    listing: str
    folder: str
    values: dict[str, Any]


Picture = Tuple[Files, str]  # a file, and what it is among


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def normal(name: str) -> str:
    """A file's name however a system or an editor writes it: "./a.png", "a\\b.png", letters with loose accents."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


# ---------------------------------------------------------------------------------------------------------------------
# The lines of a file


def decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error}): save it as UTF-8") from error


def read_json_lines(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # not splitlines, which splits at characters that JSON may hold
    for number, line in enumerate(decode(content, where).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"{place} must be a JSON object such as {{...}}, not {type(values).__name__}")
        yield place, values


def read_csv(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # strict: else a quote that is never closed swallows all lines after it
    reader = csv.DictReader(io.StringIO(decode(content, where), newline=""), strict=True)
    try:
        for values in reader:
            place = f"{where}, line {reader.line_num}"
            if None in values or None in values.values():
                raise ValueError(f'{place} has not as many fields as the first: "quote" a text that has commas in it')
            yield place, values
    except csv.Error as error:
        # `line_num` is that of the last good one: the next is where a quote was opened
        raise ValueError(f"{where}, line {reader.line_num + 1} is not valid CSV ({error})") from error


def read_parquet(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet  # comes with `datasets`, and few need it

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except Exception as error:  # the library's errors have no common base class
        raise ValueError(f"{where} cannot be read as Parquet ({error}): write it again") from error
    for number, values in enumerate(rows, start=1):
        yield f"{where}, row {number}", values


READERS = {".csv": read_csv, ".parquet": read_parquet}


def read_rows(files: Files, listings: Sequence[str]) -> Iterator[Row]:
    """The lines of listings. Raises ValueError, naming the line, for what cannot be read."""
    for listing in listings:
        read = READERS.get(posixpath.splitext(listing)[1], read_json_lines)
        for place, values in read(files.read(listing), files.where(listing)):
            yield Row(place, posixpath.basename(listing), posixpath.dirname(listing), values)


def read_texts(files: Files, names: Sequence[str]) -> Iterator[Row]:
    """Pictures with the text in the .txt beside each, whose lines are one text."""
    for picture, text in texts_beside(names).items():
        caption = " ".join(decode(files.read(text), files.where(text)).split())
        values = {"file_name": posixpath.basename(picture), "text": caption}
        yield Row(files.where(text), "metadata.jsonl", posixpath.dirname(picture), values)


def texts_beside(names: Sequence[str]) -> dict[str, str]:
    """By picture, the .txt of the same name."""
    texts = {posixpath.splitext(name)[0]: name for name in names if name.lower().endswith(".txt")}
    pictures = {name: posixpath.splitext(name)[0] for name in names if is_picture(name)}
    return {picture: texts[stem] for picture, stem in pictures.items() if stem in texts}


# ---------------------------------------------------------------------------------------------------------------------
# Which files list the samples


def choose_listings(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that count, and those that do not: other splits beside a train split, others below or beside one.

    A folder's listing stands for all folders below it.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if posixpath.basename(name) in LISTINGS:
            found.setdefault(posixpath.dirname(name), []).append(name)
    folders = sorted(found, key=lambda folder: (folder.count("/") + bool(folder), folder))
    train = {folder for folder in folders if "train" in folder.split("/")}
    chosen: list[str] = []
    for folder in folders:
        below = any(folder.startswith(f"{above}/") or not above for above in chosen)
        other_split = train and folder not in train and not OTHER_SPLITS.isdisjoint(folder.split("/"))
        if not below and not other_split:
            chosen.append(folder)
    order = list(LISTINGS)
    taken = [min(found[folder], key=lambda name: order.index(posixpath.basename(name))) for folder in chosen]
    return taken, sorted({name for group in found.values() for name in group} - set(taken))


def lists_samples(path: str | Path) -> bool:
    """Whether there is anything in a folder or a zip archive that lists samples."""
    names = open_files(path).names()
    return bool(choose_listings(names)[0] or texts_beside(names))


# ---------------------------------------------------------------------------------------------------------------------
# The samples


class Finder:
    """Finds the files that lines name."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self.files = files
        self.names = {**{normal(name): name for name in names}, **{name: name for name in names}}
        self.parts: dict[str, Finder | None] = {}

    def find(self, name: str) -> str | None:
        """The file's own name, if it is among them."""
        return self.names.get(name) or self.names.get(normal(name))

    def part(self, row: Row, column: str) -> Finder | None:
        """The archive of a column's pictures, if it lies beside the listing."""
        if row.listing != "train.jsonl" or column not in PARTS:
            return None
        name = posixpath.join(row.folder, f"{PARTS[column]}.zip")
        if name not in self.parts:
            archive = self.files.archive(name) if name in self.names else None
            self.parts[name] = None if archive is None else Finder(archive, archive.names())
        return self.parts[name]

    def picture(self, row: Row, column: str, name: str) -> Picture:
        """Raises FileNotFoundError, naming the line."""
        part = self.part(row, column)
        if part is None:
            files, tries = self, [posixpath.join(row.folder, name)]
        else:
            # Whether images.zip holds 0.png or images/0.png, and which of them the line says, is the packer's choice.
            files, tries = part, [name, f"{PARTS[column]}/{name}", posixpath.basename(normal(name))]
        for attempt in tries:
            found = files.find(attempt)
            if found is None and files.files.exists(attempt):  # a path that leads out of the folder
                found = attempt
            if found is not None:
                return files.files, found
        raise FileNotFoundError(f"{row.place} names {files.files.where(tries[0])}, which is not there")


class Listing:
    """The samples of a folder or a zip archive: of each some pictures and a text.

    `columns` are the names of the columns of pictures and, last, that of the texts; `flags` are how a user chooses
    them. Of the samples the first `max_samples` are used, if given. `texts` are theirs, and `fingerprint` is a string
    that differs where the samples do, wherever they lie.

    Raises ValueError for columns that are not there and for lines that are wrong, FileNotFoundError for files that are
    missing, OSError for damaged archives; each says where and what to do.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], flags: str, max_samples: int | None = None) -> None:
        self.files = open_files(path)
        names = self.files.names()
        self.listings, self.unread = choose_listings(names)
        texts = texts_beside(names)
        if self.listings:
            rows = read_rows(self.files, self.listings)
            self.unread += sorted(set(texts.values()))
        elif texts:
            rows = read_texts(self.files, names)
        else:
            raise FileNotFoundError(
                f"{self.files.path} holds none of {', '.join(LISTINGS)}, nor a .txt beside a picture, to list its "
                f"samples: it must hold {LAYOUT}"
            )
        self.pictures: list[tuple[Picture, ...]] = []
        self.texts: list[str] = []
        mentioned = self.read(rows, columns, flags, max_samples, Finder(self.files, names))
        if not self.texts:
            raise ValueError(f"{self.files.where(self.listings[0])} lists no samples")
        whole = max_samples is None or len(self.texts) < max_samples
        self.left_out = [name for name in names if whole and is_picture(name) and name not in mentioned]

    def read(
        self, rows: Iterator[Row], columns: Sequence[str], flags: str, max_samples: int | None, finder: Finder
    ) -> set[str | None]:
        """Adds the samples; returns what the lines mention, also in columns that are not ours."""
        mentioned: set[str | None] = set()
        for row in rows:
            if len(self.texts) == max_samples:
                break
            values = [text_in(row, column, flags) for column in columns]
            found = [finder.picture(row, column, value) for column, value in zip(columns[:-1], values)]
            self.pictures.append(tuple(found))
            self.texts.append(values[-1])
            mentioned.update(name for files, name in found if files is self.files)
            if len(row.values) > len(columns):
                others = (value for value in row.values.values() if isinstance(value, str))
                mentioned.update(finder.find(posixpath.join(row.folder, value)) for value in others)
        return mentioned

    @functools.cached_property
    def fingerprint(self) -> str:
        used: dict[int, tuple[Files, dict[str, None]]] = {}
        for files, name in (picture for pictures in self.pictures for picture in pictures):
            used.setdefault(id(files), (files, {}))[1][name] = None
        contents = [(list(names), files.fingerprint(names)) for files, names in used.values()]
        samples = [([name for _, name in pictures], text) for pictures, text in zip(self.pictures, self.texts)]
        return hashlib.sha256(repr((contents, samples)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int, column: int = 0) -> str:
        files, name = self.pictures[index][column]
        return files.where(name)

    def load(self, index: int, column: int = 0) -> Image.Image:
        """The sample's picture in a column, as it is stored. Raises OSError if it is damaged."""
        files, name = self.pictures[index][column]
        return load_image(files.read(name), files.where(name))

    def text(self, index: int) -> str:
        return self.texts[index]

    def tell(self) -> None:
        """Says what in the folder is not trained on."""
        path = self.files.path
        by = some(self.listings) or "the .txt files"
        if self.unread:
            say_once(f"the samples of {path} are those of {by}; not read: {some(self.unread)}.")
        if self.left_out:
            count = len(self.left_out)
            say_once(f"{count} pictures of {path} have no line in {by} and are left out: {some(self.left_out)}.")


@functools.lru_cache(maxsize=None)
def names_of(column: str, listing: str) -> tuple[str, ...]:
    """What a listing may call one of our columns."""
    # An imagefolder may call a column of files "depth_file_name", which `datasets` then shows as "depth".
    aliases = LISTINGS[listing]
    return tuple(name for name in (aliases.get(column), column, f"{column}_file_name") if name is not None)


def text_in(row: Row, column: str, flags: str) -> str:
    for name in names_of(column, row.listing):
        if name in row.values:
            value = row.values[name]
            if not isinstance(value, str):
                raise ValueError(f"{row.place}: {name!r} must be text, not {type(value).__name__}: {value!r}")
            return value
    raise ValueError(f"{row.place} has no column {column!r}, only {', '.join(sorted(row.values))}: {flags}")
