"""Pictures with texts from the Hugging Face hub."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Sequence

from PIL import Image

from ..run.notes import say_empty
from .images import load_image


@contextmanager
def hub_errors(name: str, instead: str) -> Iterator[None]:
    """Says what can be done where the hub's libraries fail; `instead` is what needs no hub."""
    try:
        yield
    except Exception as error:  # they have no common base class for what can go wrong
        raise OSError(
            f"{name} is no folder or zip archive here, and could not be loaded from the Hugging Face hub: {error}\n"
            "Check its name and the connection. If it is private or has a licence to accept, accept it at "
            f"https://huggingface.co/datasets/{name} and log in by `hf auth login` (formerly `huggingface-cli login`). "
            f"Or use {instead}."
        ) from error


def as_stored(feature: Any) -> bool:
    """Whether a column holds each picture's bytes and name, as `datasets` stores them."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


class HubListing:
    """The samples of a data set's train split: what `Listing` is for a folder.

    Raises ValueError for columns that are not there or hold something else, OSError where the hub cannot be reached.
    """

    def __init__(
        self, name: str, columns: Sequence[str], flags: str, instead: str, max_samples: int | None = None
    ) -> None:
        import datasets  # takes seconds, and nothing else here needs it

        with hub_errors(name, instead):
            data = datasets.load_dataset(name, split="train")
        for column in columns:
            if column not in data.column_names:
                raise ValueError(f"{name} has no column {column!r}, only {', '.join(data.column_names)}: {flags}")
        self.columns, self.name, self.flags = tuple(columns), name, flags
        self.size = min(len(data), max_samples or len(data))
        # The library's own, of the files that it has loaded.
        self.fingerprint = repr((name, data._fingerprint, self.columns, self.size))
        self.pictures = repr((name, data._fingerprint, self.columns[0]))
        # Else every sample would be read with all of its columns, other pictures among them.
        data = data.select_columns(list(dict.fromkeys(columns)))
        for column in columns[:-1]:
            feature = data.features[column]
            # As Parquet files that `datasets` has not written hold them: it knows of pictures only from its own notes.
            raw = getattr(feature, "dtype", None) in ("binary", "large_binary") or as_stored(feature)
            if not isinstance(feature, datasets.Image) and not raw:
                kind = getattr(feature, "dtype", None) or type(feature).__name__
                raise ValueError(f"{name}: column {column!r} must hold an image, not {kind}: {flags}")
            # As bytes, which images.py opens: a picture is to be the same from the hub and from a folder.
            data = data.cast_column(column, datasets.Image(decode=False))
        self.data = data

    def __len__(self) -> int:
        return self.size

    @property
    def texts(self) -> list[str]:
        """All captions. Raises ValueError for one that is no text."""
        texts = list(self.data[self.columns[-1]])[: self.size]
        return [self.check(index, text) for index, text in enumerate(texts)]

    def tell(self) -> None:
        """Says which texts are empty."""
        say_empty(self.texts, self.where, self.name)

    def text(self, index: int) -> str:
        return self.check(index, self.data[index][self.columns[-1]])

    def check(self, index: int, text: Any) -> str:
        if isinstance(text, str):
            return text
        place, kind = f"sample {index} of {self.name}", type(text).__name__
        raise ValueError(f"{place}: column {self.columns[-1]!r} must hold text, not {kind}: {self.flags}")

    def sources(self) -> list[int]:
        """The picture of each sample, which has no name here: none is known to be another's."""
        return list(range(self.size))

    def contents(self) -> list[str]:
        """For each sample a string that is equal where the pictures are the same of the same data set."""
        return [f"{self.pictures} {index}" for index in range(self.size)]

    def where(self, index: int, column: int = 0) -> str:
        return f"{self.columns[column]!r} of sample {index} of {self.name}"

    def load(self, index: int, column: int = 0) -> Image.Image:
        """The sample's picture in a column, as it is stored. Raises OSError if it is damaged."""
        try:
            stored = self.data[index][self.columns[column]]
        except Exception as error:
            raise OSError(f"{self.where(index, column)} cannot be read ({error})") from error
        if stored is None:
            raise ValueError(f"{self.where(index, column)} is empty, and must be an image: {self.flags}")
        # A data set may hold its pictures or only say where they lie.
        return load_image(stored["bytes"] or stored["path"], self.where(index, column))
