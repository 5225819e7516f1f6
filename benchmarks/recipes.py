"""The ways to train that `train_step.py` compares; it says what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the ways to train; the precision "auto" is bfloat16 where the device is fast in it."""

    own: bool
    precision: str
    checkpointing: bool
    eight_bit: bool
    compiled: bool = False
    channels_last: bool = False
    decode: bool = False
    accumulate_single_images: bool = False


OURS = Recipe(own=True, precision="auto", checkpointing=False, eight_bit=False)
RECIPES = {
    "course": Recipe(
        own=False, precision="no", checkpointing=True, eight_bit=True, decode=True, accumulate_single_images=True
    ),
    "library": Recipe(own=False, precision="auto", checkpointing=False, eight_bit=False),
    "ours": OURS,
    "ours, compiled": replace(OURS, compiled=True),
    "ours, low memory": replace(OURS, checkpointing=True, eight_bit=True),
}
OPTIONAL_RECIPES = {
    "ours, channels_last": replace(OURS, channels_last=True),
    "ours, compiled, channels_last": replace(OURS, compiled=True, channels_last=True),
}
ALL_RECIPES = {**RECIPES, **OPTIONAL_RECIPES}
