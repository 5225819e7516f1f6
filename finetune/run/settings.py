"""What makes a training what it is, kept with it in words, so that two can be compared.

`run.json` in the folder, and in each checkpoint `trainer_state.json`, hold the flags that the run was trained with and
what its base model and its data were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Iterator

from .checkpoints import STATE_FILE, write_file
from .processes import processes_started

RUN_FILE = "run.json"
# Flags that name what is compared by what it holds: models and data may lie elsewhere now.
NAMES = {
    "pretrained_model_name_or_path", "controlnet_model_name_or_path", "dataset_name", "train_data_dir",
    "instance_data_dir", "class_data_dir", "max_train_samples",
}  # fmt: skip
# Flags on which nothing depends that is learnt, but for rounding and other noise.
FREE = {
    "preset", "dry_run", "output_dir", "resume_from_checkpoint",
    "checkpointing_steps", "checkpoints_total_limit", "report_to", "mixed_precision_asked",
    "validation_data_dir", "validation_loss_steps",  # of samples that are not trained on
    "dataloader_num_workers", "gradient_checkpointing", "fit_memory", "compile", "no_cache", "also_save",
    "validation_steps", "validation_epochs", "validation_prompt", "num_validation_images", "validation_guidance_scale",
    "push_to_hub", "hub_model_id",
    "train_batch_size", "gradient_accumulation_steps",  # their product counts; noise goes by the batch
}  # fmt: skip
# Flags that may change as a run goes on: they take effect, and it is said.
CHANGEABLE = {"learning_rate", "max_grad_norm", "max_train_steps"}
# What flags were before they were there, where a run of an earlier release was trained by that.
BEFORE = {"new_layers_lr_ratio": 1.0, "prior_target": "noise"}
WORDS = {
    "program": "the program",
    "base": "the base model",
    "start": "the ControlNet to start from",
    "data": "the data",
    "class": "the pictures of the class",
    "samples_per_step": "the samples of a step (batch size, accumulation and processes multiplied)",
}
# So many pieces of a file stand for it: weights that were trained further differ nearly everywhere.
PIECES, PIECE_BYTES = 1024, 1024


def fingerprint(name: str) -> str:
    """Differs where the model in a local folder does, wherever that lies; a model of the hub is known by its name."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder)):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
        with path.open("rb") as stream:
            for position in range(0, size, max(PIECE_BYTES, size // PIECES)):
                stream.seek(position)
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    """Of a pipeline the files of its parts, beside which anything may lie; of a model's folder those in it."""
    parts = [folder / part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")]
    for place in [part for part in parts if part.is_dir()] or [folder]:
        yield from (path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))


def known_as(words: str, identity: str) -> dict[str, Any]:
    """What is compared by its identity and told in words."""
    return {"words": words, "identity": identity}


def data_identity(data: Any) -> str:
    """Of what has `len` and a string `fingerprint`: the number of its samples, and what they are."""
    return f"{len(data)} {data.fingerprint}"


def data_behind(model: Path) -> list[str] | None:
    """The identities of all data that a trained model has seen: in its run, and in that of the model it started from.

    None if that is not known, as of a model from elsewhere.
    """
    settings = _settings_of_model(model)
    if settings is None:
        return None
    # A second stage begins from what the first has learnt: what that was trained on is not held out, either.
    before = (settings.get("start") or {"data": []})["data"]
    return None if before is None else [*before, settings["data"]["identity"]]


def _settings_of_model(folder: Path) -> dict[str, Any] | None:
    """The settings of the run, or of the checkpoint, that a folder with a trained model lies in; None if in neither."""
    for name in (RUN_FILE, STATE_FILE):
        kept = _content(folder.resolve().parent / name, "settings")
        if kept is not None:
            return kept["settings"]
    return None


def _content(file: Path, *fields: str) -> dict[str, Any] | None:
    """What a file of a run holds; None if it is not there, or is none of ours: others call theirs run.json, too."""
    try:
        content = json.loads(file.read_text()) if file.is_file() else None
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.keys() >= set(fields) else None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What makes a training with these flags the training that it is, as far as it is known before the data are."""
    base = args.pretrained_model_name_or_path
    settings = {
        "program": Path(sys.argv[0]).name,
        "base": known_as(base, fingerprint(base)),
        # Their product: four GPUs with four samples each train what one with sixteen does, and may take its run over.
        "samples_per_step": args.train_batch_size * args.gradient_accumulation_steps * processes_started(),
    }
    if hasattr(args, "controlnet_model_name_or_path"):
        start = args.controlnet_model_name_or_path
        settings["start"] = start and {**known_as(start, fingerprint(start)), "data": data_behind(Path(start))}
    kept = sorted(set(vars(args)) - NAMES - FREE)
    return {**settings, **{name: getattr(args, name) for name in kept}}


def differences(was: dict[str, Any], now: dict[str, Any], changeable: bool) -> list[str]:
    """How the settings differ that both know, in words: those that may change, or those that make another training."""
    found, was = [], {**BEFORE, **was}
    for name in now:
        # Only what both know: other flags that came with a later release stop no run of an earlier one.
        if name in was and _identity(was[name]) != _identity(now[name]) and (name in CHANGEABLE) == changeable:
            before, after = _in_words(was[name]), _in_words(now[name])
            change = f"was {before}, is {after}" if before != after else f"is still {after}, but holds something else"
            found.append(f"{WORDS.get(name, f'--{name}')} {change}")
    return found


def _identity(setting: Any) -> Any:
    return setting["identity"] if isinstance(setting, dict) else setting


def _in_words(setting: Any) -> str:
    return setting["words"] if isinstance(setting, dict) else str(setting)


def keep(output_dir: Path, settings: dict[str, Any], finished: int | None, result: str | None, **more: Any) -> None:
    """Writes `run.json`: the step at which the run was finished, or None while it goes on, its result's name, and what
    else there is to know."""
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {"finished": finished, "result": result, "settings": settings, **more}
    write_file(output_dir / RUN_FILE, json.dumps(content, indent=2) + "\n")


def read_run(output_dir: Path) -> dict[str, Any]:
    """What `keep` wrote last; where that was nothing, no settings and not finished."""
    nothing = {"finished": None, "result": None, "settings": None}
    return _content(output_dir / RUN_FILE, *nothing) or nothing


def holds_another(output_dir: Path) -> bool:
    """Whether the folder has a `run.json` that another program wrote, which `keep` would replace."""
    return (output_dir / RUN_FILE).exists() and read_run(output_dir)["settings"] is None
