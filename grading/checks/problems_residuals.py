"""What is wrong with a TODO (3), ControlNet's residuals, in words, from what `observe.py` saw it do."""

from __future__ import annotations

from functools import partial
from typing import Any, Iterator

import torch

from .comparing import all_same, is_whole_list, same
from .observe import FORWARD_RUNS, NEEDED_AFTER_3
from .problems import changed_names, describe_all, errors, first, gradient_problem, judge_layouts, kind, what_it_is
from .standins import ControlNetEnd, gradients


class RightResiduals(ControlNetEnd):
    """What must come out. Computed with matrices: whoever reads this still has the place to write."""

    def __init__(self, layout: str, seed: int) -> None:
        super().__init__(layout, seed)
        parameters = list(self.parameters())
        self.matrices = list(zip(parameters[::2], parameters[1::2]))  # the last ones are the mid block's
        *self.down, self.mid = map(self.convolved, range(len(self.matrices)), [*self.skips, self.sample])

    def convolved(self, number: int, feature: torch.Tensor) -> torch.Tensor:
        """What convolution `number` makes of a feature, (batch, channels, height, width); -1 is the mid block's."""
        weight, bias = self.matrices[number]
        return torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], feature) + bias[:, None, None]

    def outputs(self, setting: tuple[float, bool, bool], reached: bool) -> list[torch.Tensor]:
        """What must be there at the place's end, or else what `forward` must return: multiplied with its scales."""
        unscaled = [*self.down, self.mid]
        if reached:
            return unscaled
        scale, guess_mode, _ = setting
        scales = scale * (torch.logspace(-1, 0, len(unscaled)) if guess_mode else torch.ones(len(unscaled)))
        return [residual * scale for residual, scale in zip(unscaled, scales.tolist())]


def judge_zero_convolved(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield from judge_layouts(judge_ends, lambda layout: RightResiduals(layout, seed), FORWARD_RUNS, seen["runs"])


def judge_ends(runs: list[tuple[RightResiduals, Any, dict[str, Any]]]) -> Iterator[tuple[str, str | None]]:
    problem = errors(run for _, _, run in runs) or first(wrongly_returned(*one) for one in runs)
    yield "runs to the place's end", problem
    if problem:
        return
    kept = [(right, run) for right, _, run in runs if run["reached"]]
    down = first(wrong_down(right, run) for right, run in kept)
    yield "`down_block_res_samples`: each feature through its own zero convolution", down
    mid = first(wrong_mid(right, run) for right, run in kept)
    yield "`mid_block_res_sample`: the mid block's output through its own", mid
    yield (
        "leaves the other names as they are",
        first(changed_names(run, dict(zip(NEEDED_AFTER_3, setting))) for _, setting, run in runs if run["reached"]),
    )
    if not down and not mid:
        yield "lets gradients through", first(lost_gradients(*one) for one in runs)


def wrongly_returned(right: RightResiduals, setting: tuple[float, bool, bool], run: dict[str, Any]) -> str | None:
    *down, mid = right.outputs(setting, reached=False)
    if run["reached"] or (all_same(run["down"], down) and same(run["mid"], mid)):
        return None
    return (
        "the code returns from `forward` by itself, without what follows the place (`conditioning_scale`, "
        "`guess_mode`, `return_dict`): set `down_block_res_samples` and `mid_block_res_sample`, and return nothing."
    )


def wrong_down(right: RightResiduals, run: dict[str, Any]) -> str | None:
    found, number = run["down"], len(right.skips)
    if not is_whole_list(found):
        return f"`down_block_res_samples` is {kind(found)} afterwards: it must be a tuple or a list of tensors."
    if all_same(found, right.skips):
        if any(name != "controlnet_mid_block" for name in run["calls"]):
            return (
                "the zero-convolved residuals are computed but not kept: `down_block_res_samples` still holds the "
                "features themselves, which would go to the UNet as they are. Set it to the results."
            )
        return (
            "the features do not go through their zero convolutions: `down_block_res_samples` is what it was. "
            "Send each one through its layer of `self.controlnet_down_blocks`."
        )
    if len(found) > number and all_same(found[:number], right.skips):
        return f"the results are joined to the features: {len(found)} tensors for {number} skip connections."
    if len(found) != number:
        few = "few" if len(found) < number else "many"
        return f"too {few} results: {len(found)} for {number} features, and the UNet adds one to each skip connection."
    wrong = [(i, what_is_down(right, i, found[i])) for i in range(number) if not same(found[i], right.down[i])]
    return f"wrong results in `down_block_res_samples`: {describe_all(wrong)}." if wrong else None


def what_is_down(right: RightResiduals, i: int, found: torch.Tensor) -> str:
    skip = right.skips[i]
    candidates = [
        ("is the feature itself, without its zero convolution", skip),
        ("went through its zero convolution twice", right.convolved(i, right.down[i])),
        ("is the sum of the feature and its result", torch.add(skip, right.down[i])),
        ("is multiplied with `conditioning_scale`, which happens after the place", 0.5 * right.down[i]),
    ]
    fitting = [j for j, other in enumerate(right.skips) if other.shape[1] == skip.shape[1] and j != i]
    candidates += [(f"went through the wrong convolution, number {j}", right.convolved(j, skip)) for j in fitting]
    if right.sample.shape[1] == skip.shape[1]:
        candidates.append(("went through the mid block's convolution", right.convolved(-1, skip)))
    candidates += [(f"is made of the wrong feature, number {j}", right.convolved(i, right.skips[j])) for j in fitting]
    candidates += [(f"is the result of feature {j}", right.down[j]) for j in fitting]
    return what_it_is(found, candidates) or "is not what the feature's zero convolution makes of it"


def wrong_mid(right: RightResiduals, run: dict[str, Any]) -> str | None:
    found = run["mid"]
    if found is None:
        return "`mid_block_res_sample` is not set: the mid block's output `sample` has a zero convolution of its own."
    if same(found, right.mid):
        return None
    if not torch.is_tensor(found):
        return f"`mid_block_res_sample` is {kind(found)} afterwards: it must be one tensor."
    mid, last = (partial(right.convolved, number) for number in (-1, -2))
    candidates: list[tuple[str, torch.Tensor]] = [
        ("is `sample` itself: the mid block's convolution is forgotten", right.sample),
        ("is taken from the last skip, not from the mid block's output `sample`", mid(right.skips[-1])),
        ("is taken from the last skip's result, not from the mid block's output `sample`", mid(right.down[-1])),
        ("is the last skip: it must be made of the mid block's output `sample`", right.skips[-1]),
        ("is the last skip's result: it must be made of the mid block's output `sample`", right.down[-1]),
        ("went through the last skip's convolution: the mid block has one of its own", last(right.sample)),
        ("went through `controlnet_mid_block` twice", mid(right.mid)),
        ("is multiplied with `conditioning_scale`, which happens after the place", 0.5 * right.mid),
    ]
    is_instead = what_it_is(found, candidates) or "is not what `self.controlnet_mid_block` makes of `sample`"
    return f"`mid_block_res_sample` {is_instead}."


def lost_gradients(right: RightResiduals, setting: tuple[float, bool, bool], run: dict[str, Any]) -> str | None:
    expected = gradients(right.outputs(setting, run["reached"]), right.leaves)
    lost = (
        "the values are right, but gradients do not come through, so ControlNet would not learn: "
        "use no `torch.no_grad()`, `.detach()` or `.data` here."
    )
    wrong = "the values are right, but the gradients are not: send each feature through its zero convolution once."
    return gradient_problem(run["gradients"], expected, lost, wrong)
