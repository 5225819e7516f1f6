"""A recipe: flags of Task 1's train.py, for one stage of training or several, in a file of data. Never code.

What a recipe may set stands here by name; whatever else train.py knows is refused, so a flag that it gets later is
refused too until somebody has thought about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

MAX_BYTES = 10_000
MAX_STAGES = 8
STAGE = "stage"
ALLOWED = (
    "resolution", "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "learning_rate",
    "lr_scheduler", "lr_warmup_steps", "max_grad_norm", "proportion_empty_prompts", "snr_gamma", "noise_alone",
    "mixed_precision", "gradient_checkpointing", "no_cache", "conditioning_channels", "max_train_samples", "seed",
    "new_layers_lr_ratio",
)  # fmt: skip
# Of what train.py knows and a recipe may not set, what stands for it; the rest is named as it is.
SET_BY_CONTEST = "the contest sets it, the same for all"
REFUSED: Mapping[str, str] = {
    "pretrained_model_name_or_path": "all train on the embedded base",
    "dataset_name": "all train on the rendered discs",
    "controlnet_model_name_or_path": "a stage starts from the stage before it, and the first from the base",
    "dataloader_num_workers": "all compute with the same number of threads, and workers are more of them",
    "compile": "compiling starts processes of its own",
    "use_8bit_adam": "it needs a GPU",
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "checkpointing_steps"), SET_BY_CONTEST),
    **dict.fromkeys(("checkpoints_total_limit", "validation_steps", "validation_guidance_scale"), SET_BY_CONTEST),
}


class RecipeError(ValueError):
    """The recipe cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Recipe:
    """A name for messages and folders, and of each stage the flags by name."""

    name: str
    stages: tuple[Mapping[str, Any], ...]

    @property
    def identity(self) -> str:
        """The same for the same stages, whatever the file is called and however it is laid out."""
        return hashlib.sha256(json.dumps(self.stages, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder_name(self) -> str:
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.name).lstrip('.')[:80] or '_'}-{self.identity}"

    def flags(self, stage: int) -> list[str]:
        """What train.py is started with for this stage. A text stands behind "=", so that none passes for a flag."""
        found: list[str] = []
        for name, value in self.stages[stage].items():
            if isinstance(value, list):
                found += [f"--{name}", *map(str, value)]
            elif value is True:
                found.append(f"--{name}")
            elif value is not False:
                found.append(f"--{name}={value}")
        return found


def checked(name: str, value: Any, place: str) -> Any:
    """A flag's value if it is of a kind that can be written behind a flag. What it may be, train.py's parser says."""
    if name not in ALLOWED:
        why = REFUSED.get(name, f"a recipe may set {', '.join(ALLOWED)}")
        raise RecipeError(f"{place} sets {name[:60]!r}, which it may not: {why}.")
    whole = isinstance(value, list) and 0 < len(value) <= 16 and all(type(one) is int for one in value)
    if not whole and type(value) not in (bool, int, float, str) or len(str(value)) > 100:
        raise RecipeError(
            f"{place} sets {name} to {str(value)[:60]!r}; right is a number, a word, true, or whole numbers in []."
        )
    return value


def parse_recipe(text: str, name: str) -> Recipe:
    """A recipe from the text of its file.

    Raises:
        RecipeError: if it is no TOML, or sets what it may not.
    """
    try:
        said = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"The recipe {name} cannot be read as TOML: {error}") from None
    stages = said.pop(STAGE, [{}])
    if not isinstance(stages, list) or not all(isinstance(one, dict) for one in stages):
        raise RecipeError(f"The recipe {name} must write its stages as [[{STAGE}]].")
    if not 1 <= len(stages) <= MAX_STAGES:
        raise RecipeError(f"The recipe {name} has {len(stages)} stages, of at most {MAX_STAGES}.")
    place = f"The recipe {name}"
    common = {key: checked(key, value, place) for key, value in said.items()}
    own = [{key: checked(key, value, place) for key, value in stage.items()} for stage in stages]
    return Recipe(name, tuple({**common, **stage} for stage in own))


def read_recipe(path: Path, name: str | None = None) -> Recipe:
    """The recipe in a file, called as the file is unless it gets another name.

    Raises:
        RecipeError: if it cannot be read, is too large, no text, or not as `parse_recipe` wants it.
    """
    name = name or path.stem
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"The recipe {name} is larger than {MAX_BYTES:,} bytes.")
    try:
        return parse_recipe(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError:
        raise RecipeError(f"The recipe {name} is no UTF-8 text.") from None
