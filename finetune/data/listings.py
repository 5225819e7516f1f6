"""Pictures with texts in a folder or a zip archive: one reader for every training, whatever the files are called.

The samples are listed by one of `LISTINGS`, each line one of them, or by a .txt beside each picture.
"""

from __future__ import annotations

import functools
import hashlib
import posixpath
import reprlib
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence, Tuple

from PIL import Image

from ..run.notes import say_empty, say_once, some
from .files import Files, contents_of, open_files
from .images import load_image
from .metadata import decode, reader_for

# The files that list samples, and how each calls our columns; where a folder has several, the first counts. Upper and
# lower case are the same.
LISTINGS: dict[str, dict[str, str]] = {
    "train.jsonl": {},  # fusing/fill50k
    "prompt.json": {"image": "target", "conditioning_image": "source", "text": "prompt"},  # ControlNet's own Fill50K
    "metadata.jsonl": {"image": "file_name"},  # imagefolder, and the next two
    "metadata.csv": {"image": "file_name"},
    "metadata.parquet": {"image": "file_name"},
}
# Beside fusing/fill50k's train.jsonl, the columns' pictures are packed in archives of these names.
PARTS = {"image": "images", "conditioning_image": "conditioning_images"}
TRAIN_SPLITS = {"train", "training"}
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
    # macOS writes "é" as two characters, a CSV from elsewhere as one: both are meant to be the same file.
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def read_rows(files: Files, listings: Sequence[str]) -> Iterator[Row]:
    """The lines of listings. Raises ValueError, naming the line, for what cannot be read."""
    for name in listings:
        for place, values in reader_for(name)(files.read(name), files.where(name)):
            yield Row(place, posixpath.basename(name).lower(), posixpath.dirname(name), values)


def read_texts(files: Files, texts: dict[str, str]) -> Iterator[Row]:
    """Pictures with the text in the .txt beside each, whose lines are one text."""
    for picture, text in texts.items():
        caption = " ".join(decode(files.read(text), files.where(text)).split())
        values = {"file_name": posixpath.basename(picture), "text": caption}
        yield Row(files.where(text), "metadata.jsonl", posixpath.dirname(picture), values)


def texts_beside(names: Sequence[str]) -> dict[str, str]:
    """By picture, the .txt of the same name; where there is none, the one whose name differs in case only."""
    texts = {posixpath.splitext(normal(name))[0]: name for name in names if name.lower().endswith(".txt")}
    pictures = {name: posixpath.splitext(normal(name))[0] for name in names if is_picture(name)}
    taken = set(pictures.values())
    alike = {stem.lower(): text for stem, text in texts.items() if stem not in taken}
    found = {picture: texts.get(stem) or alike.get(stem.lower()) for picture, stem in pictures.items()}
    return {picture: text for picture, text in found.items() if text is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Which files list the samples


def is_listing(name: str) -> bool:
    return posixpath.basename(name).lower() in LISTINGS


def is_in(folder: str, splits: set[str]) -> bool:
    """Whether a folder, or one that it lies in, is called like one of some splits: "Test" and "test2017" are."""
    return any(part.lower().strip("0123456789-_. ") in splits for part in folder.split("/"))


def other_splits(folders: set[str]) -> set[str]:
    """Those of some folders with samples that are not to be trained on, where others are: "test" beside "train"."""
    # A folder that is only called "test" is read: it may be all that there is.
    for_training = {folder for folder in folders if not folder or is_in(folder, TRAIN_SPLITS)}
    return {folder for folder in folders - for_training if for_training and is_in(folder, OTHER_SPLITS)}


def choose_samples(names: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """The listings that count, or else the .txt by the picture beside it, and those of both that do not count.

    These are of other splits than the train split, or below or beside another listing: a folder's stands for all
    folders below it.
    """
    found: dict[str, list[str]] = {}
    for name in filter(is_listing, names):
        found.setdefault(posixpath.dirname(name), []).append(name)
    texts = texts_beside(names)
    others = other_splits({*found, *map(posixpath.dirname, texts)})
    chosen: list[str] = []
    # From the top down: whoever wrote a list for all folders below meant it to count, not the lists in them.
    for folder in sorted(found, key=lambda folder: (folder.count("/") + bool(folder), folder)):
        below = any(folder.startswith(f"{above}/") or not above for above in chosen)
        if not below and folder not in others:
            chosen.append(folder)
    order = list(LISTINGS)
    # Two lists of one folder, such as a metadata.csv beside a metadata.jsonl, would train on each picture twice.
    taken = [min(found[folder], key=lambda name: order.index(posixpath.basename(name).lower())) for folder in chosen]
    counting = [] if taken else [picture for picture in texts if posixpath.dirname(picture) not in others]
    beside = {picture: texts[picture] for picture in counting}
    unread = sorted({name for group in found.values() for name in group} - set(taken))
    return taken, beside, unread + sorted(set(texts.values()) - set(beside.values()))


def lists_samples(path: str | Path) -> bool:
    """Whether there is anything in a folder or a zip archive that lists samples."""
    return any(choose_samples(open_files(path).names())[:2])


# ---------------------------------------------------------------------------------------------------------------------
# The samples


class Finder:
    """Finds the files that lines name."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self.files = files
        self.names = {**{normal(name): name for name in names}, **{name: name for name in names}}
        # Cat.png and cat.png may be two files on Linux, and cannot on Windows, where the list may come from.
        alike = Counter(normal(name).lower() for name in names)
        self.any_case = {normal(name).lower(): name for name in names if alike[normal(name).lower()] == 1}
        self.parts: dict[str, Finder | None] = {}

    def find(self, name: str) -> str | None:
        """The file's own name, if it is among them; in other upper and lower case only if that fits no other."""
        return self.names.get(name) or self.names.get(normal(name)) or self.any_case.get(normal(name).lower())

    def part(self, row: Row, column: str) -> Finder | None:
        """The archive of a column's pictures, if it lies beside the listing."""
        if row.listing != "train.jsonl" or column not in PARTS:
            return None
        name = posixpath.join(row.folder, f"{PARTS[column]}.zip")
        if name not in self.parts:
            found = self.find(name)
            archive = None if found is None else self.files.archive(found)
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
            if found is None:  # one that is hidden, or a path that leads out of the folder
                found = next(filter(files.files.exists, (normal(attempt), attempt)), None)
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
        self.listings, texts, self.unread = choose_samples(names)
        if self.listings:
            rows = read_rows(self.files, self.listings)
        elif texts:
            rows = read_texts(self.files, texts)
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
                # Pictures in columns that are not asked for, such as a second condition, are not reported as left out.
                others = (value for value in row.values.values() if isinstance(value, str))
                mentioned.update(finder.find(posixpath.join(row.folder, value)) for value in others)
        return mentioned

    @functools.cached_property
    def fingerprint(self) -> str:
        used: dict[int, tuple[Files, dict[str, None]]] = {}
        for files, name in (picture for pictures in self.pictures for picture in pictures):
            used.setdefault(id(files), (files, {}))[1][name] = None
        # What the files hold and not where they lie: a copied data set is the same, one with a changed picture is not.
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

    def sources(self) -> list[str]:
        """The picture of each sample: that of its first column."""
        return [pictures[0][1] for pictures in self.pictures]

    def contents(self) -> list[str]:
        """What the picture of each sample holds, wherever it lies."""
        return contents_of(pictures[0] for pictures in self.pictures)

    def tell_empty(self) -> None:
        """Says which texts are empty."""
        say_empty(self.texts, lambda index: self.pictures[index][0][1], self.files.path)

    def tell(self) -> None:
        """Says what in the folder is not trained on, and which texts are empty."""
        self.tell_empty()
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
                raise ValueError(
                    f"{row.place}: {name!r} must be text, not {type(value).__name__}: {reprlib.repr(value)}"
                )
            return value
    raise ValueError(f"{row.place} has no column {column!r}, only {', '.join(sorted(row.values))}: {flags}")
