"""What there is to draw with: the ControlNets and LoRAs below `runs/`, and which TODO places are still empty.

The browser gets labels, never paths, and sends labels back.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from finetune.run.checkpoints import list_checkpoints
from finetune.run.settings import read_run

from .requests import Refused

DEPTH = 4  # folders below runs/: RUN/best/controlnet and RUN/STAGE/checkpoint-N/controlnet are
MOST_FOLDERS = 5000
CONTROLNET_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
LORA_FILE, LORA_STATE = "pytorch_lora_weights.safetensors", "lora/lora.safetensors"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# A ControlNet with another of these than the UNet cannot steer it.
SHAPE = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
EMPTY_PLACE = re.compile(r"""raise NotImplementedError\(\s*["']TODO \(([\d-]+)\): (.+?)["']\s*\)""")


@dataclass(frozen=True)
class Model:
    """A trained ControlNet's folder, or a LoRA's file. `stamp` differs when it is written anew."""

    label: str
    path: Path
    stamp: int


def controlnets(runs: Path, unet: Mapping[str, Any]) -> tuple[list[Model], int]:
    """The ControlNets for a UNet of this configuration, newest first, and how many there are for others."""
    found, others = [], 0
    for folder in folders(runs):
        config, weights = (folder / name for name in CONTROLNET_FILES)
        if not config.is_file() or not weights.is_file():
            continue
        own = folder.parent if folder.name == "controlnet" else folder
        if is_old_checkpoint(own):
            continue
        if fits(config, unet):
            found.append(Model(label_of(own, runs), folder, stamp(weights)))
        else:
            others += 1
    return newest_first(found), others


def loras(runs: Path) -> list[Model]:
    """The LoRAs, newest first: those of finished trainings, and of others the last checkpoint's."""
    found = []
    for folder in folders(runs):
        file = folder / LORA_FILE
        if not file.is_file():
            file = folder / LORA_STATE
        if file.is_file() and not is_old_checkpoint(folder):
            found.append(Model(label_of(folder, runs), file, stamp(file)))
    return newest_first(found)


def chosen(models: Sequence[Model], label: Any, kind: str) -> Model:
    """The model that a label names. Raises Refused if there is none, or none any more."""
    if not models:
        raise Refused(f"There is no {kind} yet: train one first.")
    for model in models:
        if model.label == label:
            return model
    raise Refused(f"There is no such {kind}, or none any more: choose one of the list.")


def empty_places(task_1: Path) -> dict[str, str]:
    """The TODO places that nobody has written yet, with what each is to do; none where the solution is."""
    files = sorted((task_1 / "diffusion").rglob("*.py"))
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return dict(sorted(place for text in texts for place in EMPTY_PLACE.findall(text)))


def folders(runs: Path) -> Iterator[Path]:
    """The folders below `runs`, none of them hidden, not too deep and not too many."""
    for number, (name, below, _) in enumerate(os.walk(runs)):
        if number >= MOST_FOLDERS:
            return
        folder = Path(name)
        deep = len(folder.relative_to(runs).parts) >= DEPTH
        below[:] = [] if deep else sorted(one for one in below if not one.startswith("."))
        if folder != runs:
            yield folder


def is_old_checkpoint(folder: Path) -> bool:
    """Whether it is a checkpoint that says nothing new: its training is finished, or has a later one."""
    if not CHECKPOINT.fullmatch(folder.name):
        return False
    if read_run(folder.parent)["finished"] is not None:
        return True
    return folder not in list_checkpoints(folder.parent)[-1:]


def label_of(folder: Path, runs: Path) -> str:
    """What a run is called on the page: its folder below runs/, and which of its models it is."""
    checkpoint = CHECKPOINT.fullmatch(folder.name)
    if folder.name != "best" and not checkpoint:
        return folder.relative_to(runs).as_posix()
    run = folder.parent.relative_to(runs).as_posix()
    return f"{run} (in training, step {int(checkpoint[1]):,})" if checkpoint else f"{run} (its best)"


def fits(config: Path, unet: Mapping[str, Any]) -> bool:
    try:
        own = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # somebody else's file, or one that is being written
        return False
    if not isinstance(own, dict):
        return False
    alike = (as_list(own.get(name)) == as_list(unet.get(name)) for name in SHAPE)
    return own.get("_class_name") == "ControlNetModel" and all(alike)


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def stamp(file: Path) -> int:
    return file.stat().st_mtime_ns


def newest_first(models: Sequence[Model]) -> list[Model]:
    return sorted(models, key=lambda model: (-model.stamp, model.label))
