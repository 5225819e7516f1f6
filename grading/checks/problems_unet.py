"""What is wrong with a TODO (4-1) or (4-2), in words, from what `observe.py` saw it do."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Optional, Sequence

import torch

from .comparing import all_same, is_whole_list, same
from .observe import MID_RUNS, NEEDED_AFTER_4_1, NEEDED_AFTER_4_2, SKIP_RUNS
from .problems import (
    changed_names,
    describe_all,
    errors,
    explain_error,
    first,
    gradient_problem,
    judge_layouts,
    kind,
    what_it_is,
)
from .standins import UNetMiddle, gradients

RETURNED = "the code returns from the UNet's `forward`, so the rest of the UNet never runs: set the name and go on."
LOST_GRADIENTS = (
    "the values are right, but gradients do not reach ControlNet's residuals, so it would not learn: "
    "use no `torch.no_grad()`, `.detach()` or `.data` here."
)
WRONG_GRADIENTS = (
    "the values are right, but the gradients of ControlNet's residuals are not: add each of them once, as it is."
)

Problem = Callable[[UNetMiddle, "dict[str, Any]"], Optional[str]]


def split(runs: list[tuple[UNetMiddle, Any, dict[str, Any]]]) -> tuple[list, list]:
    """The runs with ControlNet, and those without."""
    with_controlnet = [(middle, run) for middle, given, run in runs if given]
    return with_controlnet, [(middle, run) for middle, given, run in runs if not given]


def stops(controlled: list[tuple[UNetMiddle, dict[str, Any]]]) -> str | None:
    """The first error, or a `return` where none must be."""
    return errors(run for _, run in controlled) or first(RETURNED for _, run in controlled if not run["reached"])


def stops_without(run: dict[str, Any]) -> str | None:
    if "error" not in run:
        return None
    where = "without ControlNet, where the residuals are None, the code stops with"
    return f"{explain_error(run['error'], where)} It must only run `if is_controlnet:`."


def changed_residuals(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    if all_same(run["given_residuals"], [*middle.residuals, middle.mid_residual]):
        return None
    return (
        "ControlNet's residuals are changed in place: they belong to the caller, who may use them again. "
        "Make new tensors with `a + b`."
    )


def judge_sums(
    controlled: list[tuple[UNetMiddle, dict[str, Any]]],
    adds: tuple[str, Problem],
    leaves: tuple[str, Problem],
    right: Callable[[UNetMiddle], list[torch.Tensor]],
) -> Iterator[tuple[str, str | None]]:
    """What both places must do with ControlNet: set the sums `right`, and leave all else as it is."""
    added = first(adds[1](*one) for one in controlled)
    yield adds[0], added
    changed = first(leaves[1](*one) for one in controlled)
    yield leaves[0], changed
    residuals = first(changed_residuals(*one) for one in controlled)
    yield "leaves the residuals as they are", residuals
    if added is None:
        gradient = first(wrong_gradients(middle, run, right(middle)) for middle, run in controlled)
        # A tensor in the wrong place makes them others: that is said already.
        yield "lets gradients through", None if gradient == WRONG_GRADIENTS and (changed or residuals) else gradient


def wrong_gradients(middle: UNetMiddle, run: dict[str, Any], right: list[torch.Tensor]) -> str | None:
    return gradient_problem(run["gradients"], gradients(right, middle.leaves), LOST_GRADIENTS, WRONG_GRADIENTS)


def others(runs: list[tuple[UNetMiddle, Any, dict[str, Any]]], needed: Sequence[str]) -> str | None:
    """What became of the names that are neither set nor done with here, with ControlNet or without."""
    for middle, given, run in runs:
        right = middle.names(controlled=bool(given))
        changed = changed_names(run, {name: right[name] for name in needed}) if run.get("reached") else None
        if changed:
            return changed
    return None


# TODO (4-1): the skip connections


def judge_skips(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield from judge_layouts(judge_skip_runs, lambda layout: UNetMiddle(layout, seed), SKIP_RUNS, seen["runs"])


def judge_skip_runs(runs: list[tuple[UNetMiddle, Any, dict[str, Any]]]) -> Iterator[tuple[str, str | None]]:
    controlled, plain = split(runs)
    problem = stops(controlled)
    if problem:
        whole = [(middle, run) for middle, run in controlled if run.get("reached")]
        yield "runs to the place's end", first(wrong_skips(*one) for one in whole) or problem
        return
    yield "runs to the place's end", None
    yield from judge_sums(
        controlled,
        ("adds each residual to its skip", wrong_skips),
        ("leaves the mid block's input as it is", changed_mid_input),
        sums,
    )
    yield "does nothing without ControlNet", first(changed_without(*one) for one in plain)
    yield "leaves the other names as they are", others(runs, NEEDED_AFTER_4_1)


def with_added(tensor: torch.Tensor, other: torch.Tensor, times: float = 1.0) -> torch.Tensor:
    """`tensor` and so many `times` of `other`: whoever reads this still has the places to write."""
    return torch.add(tensor, other, alpha=times)


def sums(middle: UNetMiddle) -> list[torch.Tensor]:
    return list(map(with_added, middle.skips, middle.residuals))


def wrong_skips(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    found, number = run["down"], len(middle.skips)
    if not is_whole_list(found):
        return f"`down_block_res_samples` is {kind(found)} afterwards: it must be a tuple or a list of tensors."
    if all_same(found, middle.skips):
        return (
            "the residuals are not added: `down_block_res_samples` is what it was, so ControlNet has no effect here. "
            "If you compute the sums, keep them under this name."
        )
    if all_same(found, [*middle.skips, *middle.residuals]) or all_same(found, [*middle.residuals, *middle.skips]):
        return (
            f"the lists are joined, not added: + puts tuples and lists one after the other, which gives "
            f"{len(found)} tensors for {number} skip connections. Add the tensors pair by pair."
        )
    if len(found) != number:
        few = "few" if len(found) < number else "many"
        return f"too {few} tensors in `down_block_res_samples`: {len(found)} for {number} skip connections."
    right = sums(middle)
    wrong = [(i, what_is_skip(middle, i, found[i])) for i in range(number) if not same(found[i], right[i])]
    return f"wrong tensors in `down_block_res_samples`: {describe_all(wrong)}." if wrong else None


def what_is_skip(middle: UNetMiddle, i: int, found: torch.Tensor) -> str:
    skip, residual = middle.skips[i], middle.residuals[i]
    if found.shape != skip.shape:
        return f"has the shape {tuple(found.shape)} of no skip connection"
    candidates = [
        ("is the skip without its residual: only some are added", skip),
        ("is the residual in place of the skip: it must be added", residual),
        ("has its residual added twice", with_added(skip, residual, 2)),
        ("is the skip minus its residual", with_added(skip, residual, -1)),
    ]
    for j, other in enumerate([*middle.residuals, middle.mid_residual]):
        if other.shape == skip.shape:
            which = f"number {j}" if j < len(middle.residuals) else "the mid block's"
            candidates.append((f"has the wrong residual added, {which}", with_added(skip, other)))
    return what_it_is(found, candidates) or "is not the sum of the skip and its residual"


def changed_mid_input(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    right = middle.skips[-1]
    if same(run["sample"], right):
        return None
    if not same(run["given_sample"], right):
        return (
            "the skips are changed in place: the last one is the same tensor as the mid block's input `sample`, "
            "which must stay as it is. Make new tensors with `a + b`."
        )
    return "`sample` is another tensor afterwards: the mid block's input must stay as it is."


def changed_without(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    if "error" in run:
        return stops_without(run)
    if not run["reached"]:
        return f"without ControlNet, {RETURNED}"
    if all_same(run["down"], middle.skips) and same(run["sample"], middle.skips[-1]):
        return None
    return "without ControlNet (`is_controlnet` is False) the skip connections and `sample` must stay what they are."


# TODO (4-2): the mid block


def judge_mid(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield from judge_layouts(judge_mid_runs, lambda layout: UNetMiddle(layout, seed), MID_RUNS, seen["runs"])


def judge_mid_runs(runs: list[tuple[UNetMiddle, Any, dict[str, Any]]]) -> Iterator[tuple[str, str | None]]:
    controlled, plain = split(runs)
    problem = stops(controlled)
    yield "runs to the place's end", problem
    if problem:
        return
    yield from judge_sums(
        controlled,
        ("adds the mid block's residual to `sample`", wrong_mid),
        ("leaves the skip connections as they are", changed_skips),
        lambda middle: [with_added(middle.mid_sample, middle.mid_residual)],
    )
    yield "does nothing without ControlNet", first(changed_mid_without(*one) for one in plain)
    yield "leaves the other names as they are", others(runs, NEEDED_AFTER_4_2)


def wrong_mid(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    found, sample, residual, last = run["sample"], middle.mid_sample, middle.mid_residual, middle.residuals[-1]
    if same(found, with_added(sample, residual)):
        return None
    if not torch.is_tensor(found):
        return f"`sample` is {kind(found)} afterwards: it must be one tensor."
    candidates = [
        ("is what it was: the residual is not added, or the sum is not kept under this name", sample),
        ("is the residual, in place of its sum with the mid block's output", residual),
        ("has the last skip's residual added, not `mid_block_additional_residual`", with_added(sample, last)),
        ("has the last skip added, not `mid_block_additional_residual`", with_added(sample, middle.skips[-1])),
        ("is the last skip plus the residual, without the mid block's output", with_added(residual, middle.skips[-1])),
        ("is the residual plus the last skip's residual", with_added(residual, last)),
        ("has the residual added twice", with_added(sample, residual, 2)),
        ("is the mid block's output minus the residual", with_added(sample, residual, -1)),
        ("is the product of the mid block's output and the residual", sample * residual),
    ]
    is_instead = what_it_is(found, candidates) or "is not the sum of the mid block's output and its residual"
    return f"`sample` {is_instead}."


def changed_skips(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    if all_same(run["down"], middle.skips):
        return None
    return "`down_block_res_samples` is changed here: the skip connections get their residuals before, in TODO (4-1)."


def changed_mid_without(middle: UNetMiddle, run: dict[str, Any]) -> str | None:
    if "error" in run:
        return stops_without(run)
    if run["reached"] and same(run["sample"], middle.mid_sample) and all_same(run["down"], middle.skips):
        return None
    return "without ControlNet nothing may happen here: keep the code inside the `if is_controlnet:` above the banners."
