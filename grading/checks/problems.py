"""What the judges of all places use to name what a wrong result is instead."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import torch

from .comparing import all_same, same

CALLED_LIST = 'missing the required "forward"'
# What PyTorch or Python says, and what it means here.
HINTS = {
    CALLED_LIST: "A list of layers cannot be called: send each tensor through one layer of it.",
    "does not support item assignment": "A tuple cannot be changed: build a new one, or change a list of it.",
    "'tuple' object has no attribute": "A tuple cannot be changed: build a new one, or change a list of it.",
    "leaf Variable that requires grad": "Change weights with `nn.init`, or inside `with torch.no_grad():`.",
    "'zero_convolution' is not defined": "Nothing is to be made here: ControlNet has its zero convolutions already, in "
    "`controlnet_down_blocks` and `controlnet_mid_block`.",
    "NameError": "What you use beyond the names of the file must be imported or defined between the banners.",
    "expected an indented block": "Some code must stand between these banners.",
    "modified by an inplace operation": "It changes a tensor in place that is still needed: make a new one.",
}


class Note(str):
    """What is worth saying about something that is not wrong."""


def explain_error(error: str, where: str = "the code stops with") -> str:
    """A sentence about an error that the student's code raised."""
    if error.startswith("NotImplementedError") and CALLED_LIST not in error:
        return f"this is still to be done: {error}."
    hint = first(f" {hint}" for said, hint in HINTS.items() if said in error)
    return f"{where} {error}.{hint or ''}"


def first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def errors(runs: Iterable[dict[str, Any]]) -> str | None:
    """The first error of several runs, as a sentence."""
    return first(explain_error(run["error"]) for run in runs if "error" in run)


def pair_up(inputs: Sequence[Any], seen: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Each input with what was seen for it.

    Raises:
        ValueError: if there is not one for each: less would be less to find wrong.
    """
    if not isinstance(seen, list) or len(seen) != len(inputs):
        raise ValueError("there must be one observation for each input")
    return list(zip(inputs, seen))


def judge_layouts(
    judge: Callable[[list], Iterator[tuple[str, str | None]]],
    make: Callable[[str], Any],
    settings: Sequence[tuple[str, Any]],
    seen: Any,
) -> list[tuple[str, str | None]]:
    """The findings of the first layout that has something wrong, else of the last.

    Where all tensors are alike, a mix-up can be named; in the other layouts it often is only an error about shapes.

    Args:
        judge: yields the findings of a list of (what `make` made, setting, what was seen).
        make: the right results of a layout.
        settings: layout and setting of each run.
        seen: what was seen in each.
    """
    groups: dict[str, list] = {}
    for (layout, setting), run in pair_up(settings, seen):
        groups.setdefault(layout, []).append((make(layout), setting, run))
    findings: list[tuple[str, str | None]] = []
    for runs in groups.values():
        findings = list(judge(runs))
        if any(problem for _, problem in findings):
            break
    return findings


def changed_names(run: Mapping[str, Any], needed: Mapping[str, Any]) -> str | None:
    """The first of the names that `forward` still needs, and that is not what it was."""
    for name in run["hides"]:
        return f"`{name}` is set here, which hides what the rest of `forward` calls so: choose another name."
    for name, right in needed.items():
        value = run["names"].get(name)
        if not (same(value, right) if torch.is_tensor(right) else type(value) is type(right) and value == right):
            return f"`{name}` is another one afterwards, and the rest of `forward` needs it: leave it as it is."
    return None


def gradient_problem(found: Any, right: Sequence[torch.Tensor | None], lost: str, wrong: str) -> str | None:
    """The sentence `lost` if a gradient does not arrive where it must, or `wrong` if another one arrives."""
    if all_same(found, right):
        return None
    if not isinstance(found, list) or len(found) != len(right):
        return lost
    arrives = (torch.is_tensor(one) and bool((one != 0).any()) for one in found)
    return wrong if all(there or must_be is None for there, must_be in zip(arrives, right)) else lost


def kind(value: Any) -> str:
    """What a recorded value is, in words."""
    if isinstance(value, dict) and set(value) == {"other"}:
        return f"of type `{value['other']}`"
    if isinstance(value, list):
        return "a sequence of other things than tensors"
    if torch.is_tensor(value):
        return f"one tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"of type `{type(value).__name__}`"


def number_of(items: Sequence[Any]) -> str:
    """Python's indices in words: `0`, `0 and 3`, `0, 1 and 3`."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def what_it_is(value: Any, candidates: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The description of the first candidate that a wrong value equals."""
    return next((description for description, tensor in candidates if same(value, tensor)), None)


def describe_all(wrong: Sequence[tuple[int, str]]) -> str:
    """A half-sentence for several wrong elements: the indices of each description."""
    by_description: dict[str, list[int]] = {}
    for index, description in wrong:
        by_description.setdefault(description, []).append(index)
    return "; ".join(f"[{number_of(indices)}] {description}" for description, indices in by_description.items())
