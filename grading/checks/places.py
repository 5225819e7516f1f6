"""Runs what stands between the banners of a TODO by itself, with exactly the names in scope that its place has.

Each place has a small surrounding that keeps the indentation and the nesting of the real file. No other TODO is in it,
so a wrong one can only be blamed on itself.
"""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import BaseOutput
from torch import nn

FILENAME = "<between the banners>"
MAX_MESSAGE = 300

FUTURE = "from __future__ import annotations\n"
METHOD = FUTURE + "class Surrounding:\n    def place({scope}):\n"
END = "return Reached(locals())\n"
UNET_SCOPE = (
    "self, sample, down_block_res_samples, is_controlnet, down_block_additional_residuals, "
    "mid_block_additional_residual, emb=None, timestep=None, encoder_hidden_states=None, cross_attention_kwargs=None, "
    "return_dict=True"
)
CONTROLNET_SCOPE = (
    "self, sample, down_block_res_samples, conditioning_scale, guess_mode, return_dict, emb=None, timestep=None, "
    "encoder_hidden_states=None, controlnet_cond=None, cross_attention_kwargs=None"
)
# What stands before and after the text, by TODO number.
SURROUNDINGS = {
    "1": (
        FUTURE + "def zero_convolution(in_channels, out_channels, kernel_size=1, stride=1, padding=0):\n",
        "    " + END,
    ),
    "2": (
        METHOD.format(scope="cls, unet, controlnet, conditioning_embedding_out_channels=(16, 32, 96, 256)"),
        "        " + END,
    ),
    "3": (METHOD.format(scope=CONTROLNET_SCOPE), "        " + END),
    "4-1": (METHOD.format(scope=UNET_SCOPE), "        " + END),
    "4-2": (METHOD.format(scope=UNET_SCOPE) + "        if is_controlnet:\n", "        " + END),
}


# Names of Python and of the file that `forward` uses outside of the place: a text that sets one hides it from all of
# `forward`, as in Python a name is local in the whole function or not at all.
USED_AROUND = {
    "3": ("ControlNetOutput", "len", "residual_scales", "tuple", "zip"),
    **dict.fromkeys(("4-1", "4-2"), ("UNet2DConditionOutput", "is_steered", "len", "size_unless_doubled")),
}


class PlaceError(Exception):
    """A text that does not compile or run. The message says what stopped it, and in which of its lines."""


@dataclass
class ControlNetOutput(BaseOutput):
    """What ControlNet's `forward` returns."""

    down_block_res_samples: tuple[torch.Tensor, ...]
    mid_block_res_sample: torch.Tensor


class Reached:
    """The names in scope where a text ran to its end."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names


@dataclass(frozen=True)
class Outcome:
    """`reached`: it ran to its end, with these `names` in scope; else it returned before, with this result."""

    reached: bool
    names: dict[str, Any]
    returned: Any = None


def residual_scales(number: int, conditioning_scale: float, guess_mode: bool) -> list[float]:
    """The factors of ControlNet's residuals, for a text that goes on where its place ends."""
    return ((torch.logspace(-1, 0, number) if guess_mode else torch.ones(number)) * conditioning_scale).tolist()


def file_names(todo: str) -> dict[str, Any]:
    """The names that the file of a TODO has imported or defined, with diffusers' models for its own.

    Except for `zero_convolution`, which no other place needs: it would be what TODO (1) is about.
    """
    names = {
        "__name__": FILENAME,
        "Any": Any,
        "Sequence": Sequence,
        "UNet2DConditionModel": UNet2DConditionModel,
        "nn": nn,
        "register_to_config": register_to_config,
        "torch": torch,
    }
    if todo in ("4-1", "4-2"):
        return {**names, "UNet2DConditionOutput": UNet2DConditionOutput}
    return {
        **names,
        "BaseOutput": BaseOutput,
        "ControlNetModel": ControlNetModel,
        "ControlNetOutput": ControlNetOutput,
        "F": F,
        "dataclass": dataclass,
        "residual_scales": residual_scales,
    }


def describe(error: BaseException, todo: str, text: str) -> str:
    """The kind of error, what it says, and the line between the banners where it happened."""
    what = " ".join(traceback.format_exception_only(type(error), error)[-1].split())[:MAX_MESSAGE]
    what = re.sub(r" on line \d+", "", what)  # a SyntaxError's words count the surrounding's lines too
    numbers = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == FILENAME]
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        numbers = [error.lineno or 0]
    if not numbers:
        return what
    lines = text.splitlines() or [""]
    number = numbers[-1] - SURROUNDINGS[todo][0].count("\n")
    number = min(max(number, 1), len(lines))
    return f"{what} (line {number} between the banners: `{lines[number - 1].strip()}`)"


@contextmanager
def blamed_on(todo: str, text: str) -> Iterator[None]:
    """Turns what the student's code raises, wherever it is called from, into a PlaceError about its text."""
    try:
        yield
    except (KeyboardInterrupt, PlaceError):
        raise
    except BaseException as error:  # also SystemExit: the code may do anything
        raise PlaceError(describe(error, todo, text)) from error


def build(todo: str, text: str) -> Callable[..., Any]:
    """The function that a text stands in; it raises whatever the text raises, also when it does not compile."""
    before, after = SURROUNDINGS[todo]
    code = compile(before + text.rstrip("\n") + "\n" + after, FILENAME, "exec", dont_inherit=True)
    names = {**file_names(todo), "Reached": Reached}
    exec(code, names)
    return names["zero_convolution"] if todo == "1" else vars(names["Surrounding"])["place"]


def run(todo: str, text: str, **scope: Any) -> Outcome:
    """Runs a text with the given names in scope.

    Raises:
        PlaceError: if it does not compile, or raises.
    """
    with blamed_on(todo, text):
        result = build(todo, text)(**scope)
    if isinstance(result, Reached):
        return Outcome(True, result.names)
    return Outcome(False, {}, result)
