"""Fill50K: pictures of one disc, the outline of the disc as the condition, and a prompt that names the two colours.

`load_data` reads it from the hub, from a folder or a zip archive, or renders it; it reads other data too, where they
come as image, conditioning image and caption. Run as a program it writes the course's five test prompts with five test
conditions of the course's kind, and two more for trying out:

    python fill50k.py --write_test_data data
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import posixpath
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import huggingface_hub
import numpy as np
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from discs import COURSE_WIDTH, FRAME, Disc, Line, draw, fit, render_condition
from finetune.colors import COLORS
from finetune.images import open_image, to_rgb

PROMPT = "{disc} circle with {background} background"
HUB_NAME = "fusing/fill50k"
COLUMN_FLAGS = "--image_column, --conditioning_image_column and --caption_column"

# The files that list the samples of a folder or an archive, one JSON object a line, and how each calls our columns.
INDEX_FILES: dict[str, dict[str, str]] = {
    "train.jsonl": {},  # fusing/fill50k
    "prompt.json": {"image": "target", "conditioning_image": "source", "text": "prompt"},  # ControlNet's own Fill50K
    "metadata.jsonl": {"image": "file_name"},  # imagefolder
}


class Dataset:
    """What `load_data` returns: `len(data)` samples, to be read from any number of threads and processes.

    `data[i]` is {"image": RGB picture, "conditioning_image": RGB picture, "text": str}. `data.fingerprint` is a string
    that differs where the samples do, for caches of what was computed from them.
    """

    fingerprint: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def conditioning_image(self, index: int) -> Image.Image:
        """`self[index]["conditioning_image"]`, where possible without making the rest of the sample."""
        return self[index]["conditioning_image"]


def load_data(
    dataset_name: str,
    image_column: str = "image",
    conditioning_image_column: str = "conditioning_image",
    caption_column: str = "text",
    max_samples: int | None = None,
) -> Dataset:
    """Opens a data set; pictures are read when they are asked for.

    `dataset_name` is "rendered", a local folder or zip (laid out like fusing/fill50k, like ControlNet's original
    fill50k.zip, or an imagefolder with a metadata.jsonl), or else a data set of the hub, of which the train split is
    taken. Of the samples only the first `max_samples` are used, if given.

    Raises ValueError for columns that are not there and for lines or captions that are wrong, FileNotFoundError for
    files that are missing, OSError for damaged ones and where the hub cannot be reached.
    """
    columns = (image_column, conditioning_image_column, caption_column)
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, not {max_samples}")
    if dataset_name == "rendered":
        if columns != ("image", "conditioning_image", "text"):
            raise ValueError(
                f"rendered data have the columns image, conditioning_image, text: leave {COLUMN_FLAGS} out"
            )
        return RenderedFill50K(size=min(max_samples or 50_000, 50_000))

    path = os.path.expanduser(dataset_name)
    if os.path.exists(path):
        return load_local(path, columns, max_samples)
    if os.path.isabs(path) or path.startswith(".") or path.endswith(".zip") or path.count("/") > 1:
        raise FileNotFoundError(f"there is no folder or zip archive {path}: correct --dataset_name")
    if dataset_name == HUB_NAME:
        return load_from_hub(columns, max_samples)
    return HubDataset(dataset_name, columns, max_samples)


# ---------------------------------------------------------------------------------------------------------------------
# From disk


class Folder:
    """Files by their names below a folder."""

    def __init__(self, path: str):
        self.path = path

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)

    def find(self, filename: str) -> list[str]:
        """The names of the files so called in the folder itself and one folder down."""
        paths = [path for pattern in (filename, f"*/{filename}") for path in sorted(Path(self.path).glob(pattern))]
        return [path.relative_to(self.path).as_posix() for path in paths if path.is_file()]

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Changes when the file does; None where there is no such file."""
        try:
            status = os.stat(self.where(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        return Path(self.where(name)).read_bytes()

    def archive(self, name: str) -> Archive:
        return Archive(self.where(name))


class Archive:
    """Members of a zip archive, or of one that lies `inside` it, which is then held in memory."""

    def __init__(self, path: str, inside: str | None = None):
        self.path, self.inside = path, inside
        self.opened: tuple[int, zipfile.ZipFile] | None = None
        self.zip()  # a damaged archive is found now, not in a worker later

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": None}

    def zip(self) -> zipfile.ZipFile:
        # Threads may share a ZipFile. A forked process may not: it would share the place in the file with its parent.
        if self.opened is None or self.opened[0] != os.getpid():
            try:
                opened = zipfile.ZipFile(self.path)
                if self.inside is not None:
                    opened = zipfile.ZipFile(io.BytesIO(opened.read(self.inside)))
            except (
                Exception
            ) as error:  # zipfile raises whatever its decoders do: zlib.error, EOFError, struct.error, ...
                raise OSError(
                    f"{self.where()} cannot be read as a zip archive ({error}): delete it and fetch it again"
                ) from error
            self.opened = (os.getpid(), opened)
        return self.opened[1]

    def where(self, name: str | None = None) -> str:
        return " in ".join(part for part in (name, self.inside, self.path) if part is not None)

    def find(self, filename: str) -> list[str]:
        names = [name for name in self.zip().namelist() if posixpath.basename(name) == filename]
        return sorted((name for name in names if name.count("/") < 2), key=lambda name: (name.count("/"), name))

    def stamp(self, name: str) -> tuple[int, int] | None:
        try:
            member = self.zip().getinfo(name)
        except KeyError:
            return None
        return member.file_size, member.CRC

    def read(self, name: str) -> bytes:
        try:
            return self.zip().read(name)
        except Exception as error:
            raise OSError(
                f"{self.where(name)} cannot be read ({error}): delete the archive and fetch it again"
            ) from error

    def archive(self, name: str) -> Archive:
        return Archive(self.path, inside=name)


def read_image(files: Folder | Archive, name: str) -> Image.Image:
    return open_image(files.read(name), files.where(name))


def read_lines(text: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every line's place and the JSON object on it."""
    try:
        lines = text.decode("utf-8-sig").split("\n")  # not splitlines, which splits at characters that JSON may hold
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place} must be a JSON object such as {{...}}, not {type(row).__name__}")
        yield place, row


def text_in(row: dict[str, Any], column: str, aliases: dict[str, str], place: str) -> str:
    # An imagefolder may call a column of files "depth_file_name", which `datasets` then shows as "depth".
    for name in (column, aliases.get(column), f"{column}_file_name"):
        if name in row:
            if not isinstance(row[name], str):
                raise ValueError(f"{place}: {name!r} must be text, not {type(row[name]).__name__}: {row[name]!r}")
            return row[name]
    raise ValueError(f"{place} has no column {column!r}, only {', '.join(sorted(row))}: choose with {COLUMN_FLAGS}")


class FilesDataset(Dataset):
    """The samples that an index file lists.

    `parts` are two pairs, for the images and the conditions: the files that they are among and, if those lie in an
    archive of their own (images.zip), the archive's name without ".zip", else None.
    """

    def __init__(self, files, index: str, parts, columns: tuple[str, str, str], max_samples: int | None):
        self.files = [part_files for part_files, _ in parts]
        self.rows: list[tuple[str, str, str]] = []
        folder, aliases = posixpath.dirname(index), INDEX_FILES[posixpath.basename(index)]
        digest = hashlib.sha256()
        for place, row in read_lines(files.read(index), files.where(index)):
            values = [text_in(row, column, aliases, place) for column in columns]
            for i, (part_files, part) in enumerate(parts):
                name = values[i]
                # Whether images.zip holds 0.png or images/0.png, and which of them the index says, is the packer's.
                names = [name, f"{part}/{name}", posixpath.basename(name)] if part else [posixpath.join(folder, name)]
                for values[i] in names:
                    stamp = part_files.stamp(values[i])
                    if stamp is not None:
                        break
                else:
                    raise FileNotFoundError(f"{place} names {part_files.where(names[0])}, which is not there")
                digest.update(repr((values[i], stamp)).encode())
            digest.update(repr(values[2]).encode())
            self.rows.append(tuple(values))
            if len(self.rows) == max_samples:
                break
        if not self.rows:
            raise ValueError(f"{files.where(index)} lists no samples")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, condition, text = self.rows[index]
        return {
            "image": read_image(self.files[0], image),
            "conditioning_image": read_image(self.files[1], condition),
            "text": text,
        }

    def conditioning_image(self, index: int) -> Image.Image:
        return read_image(self.files[1], self.rows[index][1])


def load_local(path: str, columns: tuple[str, str, str], max_samples: int | None) -> Dataset:
    path = os.path.abspath(path)  # as the process may go elsewhere before a worker opens it
    files = Folder(path) if os.path.isdir(path) else Archive(path)
    found = [name for index in INDEX_FILES for name in files.find(index)]
    found = (
        [name for name in found if "/" not in name] or [name for name in found if name.startswith("train/")] or found
    )
    if not found:
        raise FileNotFoundError(f"{path} holds none of {', '.join(INDEX_FILES)}, which would list its samples")
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(found)}: give --dataset_name a folder with one of them")
    index = found[0]

    parts = []
    for part in ("images", "conditioning_images"):
        name = posixpath.join(posixpath.dirname(index), f"{part}.zip")
        zipped = posixpath.basename(index) == "train.jsonl" and files.stamp(name) is not None
        parts.append((files.archive(name), part) if zipped else (files, None))
    return FilesDataset(files, index, parts, columns, max_samples)


# ---------------------------------------------------------------------------------------------------------------------
# From the hub


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's libraries have no common base class for what can go wrong
        raise OSError(
            f"{name} is no folder or zip archive here, and could not be loaded from the Hugging Face hub: {error}\n"
            "Check its name and the connection. If it is private or has a licence to accept, accept it at "
            f"https://huggingface.co/datasets/{name} and log in by `hf auth login` (formerly `huggingface-cli login`). "
            "Or use `--dataset_name rendered`, which needs no download."
        ) from error


def load_from_hub(columns: tuple[str, str, str], max_samples: int | None) -> Dataset:
    """fusing/fill50k without its loading script, which `datasets` 4 and later do not run."""
    paths = {}
    for name in ("train.jsonl", "images.zip", "conditioning_images.zip"):
        with hub_errors(HUB_NAME):
            paths[name] = huggingface_hub.hf_hub_download(HUB_NAME, name, repo_type="dataset")
    parts = [(Archive(paths[f"{part}.zip"]), part) for part in ("images", "conditioning_images")]
    return FilesDataset(Folder(os.path.dirname(paths["train.jsonl"])), "train.jsonl", parts, columns, max_samples)


class HubDataset(Dataset):
    """Any data set of the hub that `datasets` loads by itself."""

    def __init__(self, name: str, columns: tuple[str, str, str], max_samples: int | None):
        import datasets  # takes seconds, and nothing else here needs it

        with hub_errors(name):
            data = datasets.load_dataset(name, split="train")
        for column in columns:
            if column not in data.column_names:
                raise ValueError(
                    f"{name} has no column {column!r}, only {', '.join(data.column_names)}: choose with {COLUMN_FLAGS}"
                )
        self.name, self.columns = name, columns
        self.size = min(len(data), max_samples or len(data))
        self.data = data.select_columns(list(dict.fromkeys(columns)))  # so that other pictures are not decoded
        self.fingerprint = repr((name, data._fingerprint, columns, self.size))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self.size)[index]
        where = f"sample {index} of {self.name}"
        try:
            row = self.data[index]
        except Exception as error:
            raise OSError(f"{where} cannot be read ({error})") from error
        image, condition, text = (row[column] for column in self.columns)
        for column, value, wanted in zip(self.columns, (image, condition, text), (Image.Image, Image.Image, str)):
            if not isinstance(value, wanted):
                kinds = f"{'text' if wanted is str else 'an image'}, not {type(value).__name__}"
                raise ValueError(f"{where}: column {column!r} must hold {kinds}: choose with {COLUMN_FLAGS}")
        return {"image": to_rgb(image, where), "conditioning_image": to_rgb(condition, where), "text": text}


# ---------------------------------------------------------------------------------------------------------------------
# Rendered

RADII = (40, 280)
WIDTHS = (1, 8)  # px in the frame
SEED = 50_000
SPLIT_SIZE = 1_000_000
SPLITS = {"train": 0, "test": SPLIT_SIZE}  # the first index of each; as no split is longer, no two ever overlap
COLOR_NAMES = sorted(name for name in COLORS if name != "antique brown")  # that one is not of CSS


@dataclass(frozen=True)
class RenderedSample:
    image: Image.Image
    conditioning_image: Image.Image
    text: str
    disc: Disc
    line: Line
    disc_color: str
    background_color: str


# Five test conditions of the course's kind, in the order of its five prompts.
TEST_DISCS = [
    Disc(110, 262, 190),  # large, cut by the left edge
    Disc(268, 246, 58),  # small, near the middle
    Disc(190, 256, 272),  # cut at the top, left and bottom
    Disc(371, 214, 140),  # touches the right edge
    Disc(218, 292, 108),  # medium
]
TEST_PROMPTS = [
    "pale golden rod circle with old lace background",
    "sea green circle with a light cyan background",
    "deep sky blue circle with a light yellow background",
    "rosy brown circle with a misty rose background",
    "forest green circle with an antique brown background",
]
VALIDATION_DISCS = [Disc(306, 204, 124), Disc(168, 338, 92)]  # conditioning_image_1.png and _2.png


@functools.lru_cache(maxsize=None)
def color_differences() -> np.ndarray:
    """CIEDE2000 between all COLOR_NAMES: (names, names)."""
    lab = rgb2lab(np.array([COLORS[name] for name in COLOR_NAMES]) / 255)
    return deltaE_ciede2000(lab[:, None], lab[None])


def draw_disc(rng: np.random.Generator) -> Disc:
    x, y = (int(value) for value in rng.integers(0, FRAME, size=2))
    return Disc(x, y, int(rng.integers(RADII[0], RADII[1] + 1)))


def draw_line(index: int) -> Line:
    """A sample's line: half are as thick as the course's, the others of 1 to 8 px; four in five are white on black."""
    rng = np.random.default_rng([SEED, index, 1])  # of its own, so that discs and colours do not depend on it
    any_width, soft, inverted, jpeg = (bool(value) for value in rng.random(4) < (0.5, 0.25, 0.2, 0.1))
    width = int(rng.integers(WIDTHS[0], WIDTHS[1] + 1)) if any_width else COURSE_WIDTH
    return Line(width, soft, inverted, jpeg)


def render(
    index: int, resolution: int = FRAME, min_color_difference: float = 0.0, line: Line | None = None
) -> RenderedSample:
    """Sample number `index`, a function of these arguments and nothing else: 0 and up for training, 1,000,000 and up
    held out. Place, size and outline do not depend on the colours, nor anything on the resolution (px of both images).
    The outline is drawn as the sample's own line, unless one is given.

    Raises ValueError if no two colours are `min_color_difference` (CIEDE2000) apart.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1 px, not {resolution}")
    if min_color_difference > 0 and min_color_difference > color_differences().max():
        raise ValueError(f"no two colours differ by {min_color_difference}, only by {color_differences().max():.1f}")
    rng = np.random.default_rng([SEED, index])
    disc = draw_disc(rng)
    while True:
        a, b = (int(value) for value in rng.integers(0, len(COLOR_NAMES), size=2))
        first, second = COLOR_NAMES[a], COLOR_NAMES[b]
        if COLORS[first] == COLORS[second]:  # the same name twice, or aqua on cyan
            continue
        if min_color_difference <= 0 or color_differences()[a, b] >= min_color_difference:
            break
    line = line or draw_line(index)
    return RenderedSample(
        image=fit(draw(disc, resolution, "RGB", COLORS[second], (0, COLORS[first])), resolution),
        conditioning_image=render_condition(disc, resolution, line),
        text=PROMPT.format(disc=first, background=second),
        disc=disc,
        line=line,
        disc_color=first,
        background_color=second,
    )


class RenderedFill50K(Dataset):
    """Fill50K without files: `size` samples of `resolution` px, drawn when they are asked for.

    Centres are uniform in the frame and radii in 40 to 280 of its 512 px, so discs may leave it; the colours are two of
    CSS's, at least `min_color_difference` (CIEDE2000) apart; outlines are of many kinds (see `draw_line`). The splits
    "train" and "test" share no sample.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 50_000,
        resolution: int = FRAME,
        min_color_difference: float = 0.0,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if not 1 <= size <= SPLIT_SIZE:
            raise ValueError(f"size must be 1 to {SPLIT_SIZE}, so that train and test share no sample, not {size}")
        self.split, self.size, self.resolution = split, size, resolution
        self.min_color_difference = min_color_difference
        self.render(0)  # arguments that do not work are found now
        # To be counted up when the renderer draws other pictures: what was computed from the old ones is void then.
        self.fingerprint = repr(("rendered", 2, split, size, resolution, float(min_color_difference)))

    def __len__(self) -> int:
        return self.size

    def number(self, index: int) -> int:
        return SPLITS[self.split] + range(self.size)[index]

    def render(self, index: int, resolution: int | None = None, line: Line | None = None) -> RenderedSample:
        """Sample `index` of this split with all that is known of it, at its own or another resolution (px), its outline
        drawn as its own or another line."""
        return render(self.number(index), resolution or self.resolution, self.min_color_difference, line)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.render(index)
        return {"image": sample.image, "conditioning_image": sample.conditioning_image, "text": sample.text}

    def conditioning_image(self, index: int) -> Image.Image:
        number = self.number(index)
        disc = draw_disc(np.random.default_rng([SEED, number]))
        return render_condition(disc, self.resolution, draw_line(number))


def write_test_data(folder: str | Path) -> None:
    """Writes test_prompts.json, test_conditions/0.png to 4.png, conditioning_image_1.png and _2.png (512 px)."""
    folder = Path(folder)
    (folder / "test_conditions").mkdir(parents=True, exist_ok=True)
    prompts = {str(i): prompt for i, prompt in enumerate(TEST_PROMPTS)}
    (folder / "test_prompts.json").write_text(json.dumps(prompts, indent=4) + "\n")
    for i, disc in enumerate(TEST_DISCS):
        render_condition(disc).save(folder / "test_conditions" / f"{i}.png", optimize=True)
    for i, disc in enumerate(VALIDATION_DISCS, start=1):
        render_condition(disc).save(folder / f"conditioning_image_{i}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the test conditions and prompts.")
    parser.add_argument("--write_test_data", metavar="FOLDER", required=True)
    write_test_data(parser.parse_args().write_test_data)
