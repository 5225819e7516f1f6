"""The Hugging Face hub: pictures with texts from there, and trained models to there."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from .cards import CARD_FILE, PICTURE_FILE
from .images import load_image
from .notes import say_empty
from .optimizer import SetupError
from .runs import Run, RunFinished, is_main_process

# Of a folder with a trained model what is for everybody: neither checkpoints nor logs, caches and pictures of data.
PUBLIC = (CARD_FILE, PICTURE_FILE, "config.json", "*.safetensors")


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
        self.fingerprint = repr((name, data._fingerprint, self.columns, self.size))
        data = data.select_columns(list(dict.fromkeys(columns)))
        for column in columns[:-1]:
            feature = data.features[column]
            if not isinstance(feature, datasets.Image):
                kind = getattr(feature, "dtype", None) or type(feature).__name__
                raise ValueError(f"{name}: column {column!r} must hold an image, not {kind}: {flags}")
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
        return load_image(stored["bytes"] or stored["path"], self.where(index, column))


@dataclass(frozen=True)
class Upload:
    """A model repository of the hub that this machine may write to."""

    repo_id: str
    api: HfApi

    def send(self, folder: Path) -> None:
        """Sends what is public of a folder with a trained model, as one commit.

        Raises:
            OSError: if it does not arrive; the folder is as it was, and the same call can be tried again.
        """
        files = sorted({path for pattern in PUBLIC for path in folder.glob(pattern)})
        try:
            self.api.create_commit(
                self.repo_id,
                [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path)) for path in files],
                commit_message="Trained model and its card",
            )
        except Exception as error:  # they have no common base class for what can go wrong
            raise OSError(
                f"{folder} could not be sent to {self.repo_id} of the Hugging Face hub: {first_line(error)}\n"
                "It is whole on this disk: start the same command again, with --resume_from_checkpoint latest, to send "
                "it without training again."
            ) from error
        print(f"Sent to {self.api.endpoint}/{self.repo_id}: {', '.join(path.name for path in files)}")


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def prepare_upload(args: argparse.Namespace) -> Upload | None:
    """Before a training with --push_to_hub: sees to it that the result can be sent, and makes the repository.

    None without the flag, and in all processes but the main one.

    Raises:
        SetupError: if there is no token, no connection, no right to write there, or no such name.
    """
    if not args.push_to_hub or not is_main_process():
        return None
    name = args.hub_model_id or args.output_dir.resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SetupError(f"{name!r} is no name for a model of the hub: give a --hub_model_id. {error}") from error
    if not get_token():
        raise SetupError(
            "--push_to_hub needs a token that may write (https://huggingface.co/settings/tokens): log in by "
            "`hf auth login` (formerly `huggingface-cli login`), or set HF_TOKEN. Nothing was trained."
        )
    if constants.HF_HUB_OFFLINE:
        raise SetupError("--push_to_hub cannot send anything while HF_HUB_OFFLINE is set. Nothing was trained.")
    api = HfApi()
    try:
        repo_id = api.create_repo(name, exist_ok=True).repo_id
    except Exception as error:  # they have no common base class for what can go wrong
        raise SetupError(
            f"The Hugging Face hub does not take {name!r}: {first_line(error)}\nCheck the connection, the name, and "
            "that your token may write. Nothing was trained."
        ) from error
    return Upload(repo_id, api)


def end_if_finished(run: Run, upload: Upload | None, folder: Path) -> None:
    """As `Run.end_if_finished`, after the result in `folder` is sent if that is asked for. Raises OSError, too."""
    try:
        run.end_if_finished()
    except RunFinished:
        if upload is not None:
            upload.send(folder)
        raise
