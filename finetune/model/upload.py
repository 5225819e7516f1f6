"""Sends what was trained to the Hugging Face hub."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..optimizer import SetupError
from ..run.folder import Run, RunFinished
from ..run.processes import is_main_process
from .cards import CARD_FILE, PICTURE_FILE

# Of a folder with a trained model what is for everybody: neither checkpoints nor logs, caches and pictures of data.
PUBLIC = (CARD_FILE, PICTURE_FILE, "config.json", "*.safetensors")


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
            # One commit: nobody can load the weights of one run with the card of another.
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
        # Made before the training, as the only sure way to know that the token may: after hours it would be too late.
        repo_id = api.create_repo(name, exist_ok=True).repo_id
        # Of a repository that is there already it only says that one may read it. Older
        # releases of the library, as the course's, cannot ask.
        if hasattr(api, "auth_check") and "write" in inspect.signature(api.auth_check).parameters:
            api.auth_check(repo_id, write=True)
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
