"""What is wrong with a TODO (1), (2) or (3), in words, from what `observe.py` saw it do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterator

import torch
import torch.nn.functional as F

from .observe import FORWARD_RUNS
from .problems import (
    Note,
    all_same,
    describe_all,
    errors,
    explain_error,
    first,
    gradient_problem,
    is_whole_list,
    judge_layouts,
    kind,
    number_of,
    pair_up,
    same,
    what_it_is,
)
from .standins import (
    BATCH,
    CONVOLUTIONS,
    MISFITS,
    ControlNetEnd,
    Convolution,
    ConvolutionInputs,
    gradients,
    original_states,
)

COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")

# TODO (1): what `zero_convolution` makes


def judge_zero_convolution(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    pairs = pair_up(CONVOLUTIONS, seen["convolutions"])
    made = [one for _, one in pairs]
    problem = errors(made) or first(no_module(one) for one in made) or first(wrong_names(one) for one in made)
    yield "sets `module` to a convolution", problem
    if problem:
        return
    shape = first(wrong_shape(asked, one) for asked, one in pairs)
    yield "has the asked shape, stride and padding", shape
    yield "starts at zero", first(not_zero(one) for one in made)
    yield "is trainable", first(not_trainable(one) for one in made)
    if shape is None:
        yield "computes a convolution", first(not_a_convolution(asked, one, seed) for asked, one in pairs)


def no_module(made: dict[str, Any]) -> str | None:
    if made["is_module"]:
        return None
    if made["module"] is None:
        return "`module` is not set: give the new convolution this name, which the line below the banners returns."
    return f"`module` is of type `{made['module']}`, not a module: ControlNet could neither call nor train it."


def wrong_names(made: dict[str, Any]) -> str | None:
    names = list(made["state"])
    if set(names) == {"weight", "bias"}:
        return None
    if names == ["weight"]:
        return "the convolution has no bias: both weight and bias belong to it, and checkpoints expect both."
    if not names:
        return f"`module`, of type `{made['module']}`, has no weights at all: it must be a convolution."
    return (
        f"the weights are called {number_of([f'`{name}`' for name in names])} in the state dict, not `weight` and "
        f"`bias`: checkpoints could not be exchanged. Set `module` to the convolution itself, without a wrapper."
    )


def wrong_shape(asked: Convolution, made: dict[str, Any]) -> str | None:
    shape = tuple(made["state"]["weight"].shape)
    right = (asked.out_channels, asked.in_channels, asked.kernel_size, asked.kernel_size)
    if shape == (right[1], right[0], *right[2:]) and shape != right:
        return f"`in_channels` and `out_channels` are swapped: {asked} has a weight of shape {shape}, not {right}."
    if shape[:2] == right[:2] and shape != right:
        return f"`kernel_size` is not what was asked for: {asked} has a weight of shape {shape}, not {right}."
    if shape != right or tuple(made["state"]["bias"].shape) != right[:1]:
        return f"{asked} has a weight of shape {shape} and not {right}, or a bias that does not fit."
    if "error" in made["fresh"]:
        return f"what {asked} makes cannot be called on an image: {made['fresh']['error']}."
    output, size = made["fresh"]["output"], asked.output_size()
    if torch.is_tensor(output) and tuple(output.shape) == (BATCH, right[0], size, size):
        return None
    found = tuple(output.shape[2:]) if torch.is_tensor(output) else kind(output)
    return f"{asked} makes of a 9x9 image one of {found}, not {(size, size)}{suspect(asked, found)}."


def suspect(asked: Convolution, found: Any) -> str:
    """A half-sentence about the argument that explains a wrong output size, if one does."""
    half = asked.kernel_size // 2
    suspects = {
        "`stride` is ignored": replace(asked, stride=1),
        "`padding` is ignored": replace(asked, padding=0),
        "`stride` and `padding` are ignored": replace(asked, stride=1, padding=0),
        "`padding` is half of the kernel instead of what was asked for": replace(asked, padding=half),
        "`stride` and `padding` are swapped": replace(asked, stride=asked.padding or 1, padding=asked.stride),
    }
    for description, instead in suspects.items():
        if found == (instead.output_size(),) * 2:
            return f": it looks as if {description}"
    return ""


def not_zero(made: dict[str, Any]) -> str | None:
    for name in ("weight", "bias"):
        values = made["state"][name]
        if not bool((values == 0).all()):
            return (
                f"the {name} does not start at zero (its largest value is {values.abs().max().item():.2g}): a fresh "
                f"ControlNet would disturb the UNet before it has learned anything. Set weight and bias to zero."
            )
    return None


def not_trainable(made: dict[str, Any]) -> str | None:
    for name in ("weight", "bias"):
        if name not in made["trainable"]:
            return f"the {name} is not a parameter, so no optimiser would train it and it would stay zero for ever."
        if not made["trainable"][name]:
            return f"the {name} does not require a gradient, so it is not trained and would stay zero for ever."
    return None


def not_a_convolution(asked: Convolution, made: dict[str, Any], seed: int) -> str | None:
    """Compares with PyTorch's convolution once the zeros are replaced by random values."""
    trained = made["trained"]
    if "error" in trained:
        return explain_error(trained["error"], "once it is trained, the convolution stops with")
    inputs = ConvolutionInputs(asked, seed)
    leaves = [inputs.image, inputs.weight.requires_grad_(), inputs.bias.requires_grad_()]
    output = F.conv2d(*leaves, stride=asked.stride, padding=asked.padding)
    if not same(trained["output"], output):
        return f"once the zeros are trained away, {asked} does not compute a plain convolution with zeros around it."
    if not all_same(trained["gradients"], gradients([output], leaves)) and not not_trainable(made):
        return "the output is right, but the gradients of image, weight and bias are not: it could not be trained."
    return None


# TODO (2): what `from_unet` copies


def judge_from_unet(seed: int, seen: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    problem = not_a_controlnet(seed, seen)
    yield "leaves a ControlNet", problem
    if problem:
        return
    problem = not_copied(seed, seen)
    yield "copies all of the four modules' weights", problem
    yield "changes nothing else in ControlNet", other_weights_changed(seed, seen)
    shared = shares_weights(seed, seen)
    yield "shares no weights with the UNet", shared
    if shared is None:
        yield "leaves ControlNet trainable", frozen(seen)
    if problem is None:
        yield "leaves the UNet as it is", unet_changed(seed, seen["unet"])
        yield "would refuse weights that do not fit", silently_partial(seed, seen)


def not_a_controlnet(seed: int, seen: dict[str, Any]) -> str | None:
    if not seen["is_module"]:
        return f"`controlnet` is of type `{seen['kind']}` afterwards, not the model that `from_unet` returns."
    names, right = set(seen["controlnet"]), set(original_states(seed)[1])
    for name in sorted(right - names):
        return f"the ControlNet has lost weights that belong to it, such as `{name}`."
    for name in sorted(names - right):
        return f"the ControlNet has weights afterwards that do not belong to it, such as `{name}`."
    return None


def not_copied(seed: int, seen: dict[str, Any]) -> str | None:
    unet, controlnet = original_states(seed)
    missing, partial = [], []
    for module in COPIED:
        names = [name for name in controlnet if name.partition(".")[0] == module]
        different = [name for name in names if not same(seen["controlnet"][name], unet[name])]
        if len(different) == len(names):
            missing.append(module)
        elif different:
            partial.append(f"{len(different)} of the {len(names)} tensors of `{module}`, such as `{different[0]}`,")
    if not missing and not partial:
        return None
    if any(same(seen["unet"].get(name), controlnet[name]) for name in controlnet):
        return "the copy goes the wrong way: ControlNet's random weights have replaced the UNet's."
    if len(missing) == len(COPIED):
        return "nothing is copied: ControlNet still has its random weights, not those of the UNet's encoder."
    if missing:
        names = number_of([f"`{module}`" for module in missing])
        return f"{names} {'is' if len(missing) == 1 else 'are'} not copied and would start from random weights."
    return f"the copy is partial: {number_of(partial)} are not the UNet's."


def other_weights_changed(seed: int, seen: dict[str, Any]) -> str | None:
    for name, tensor in original_states(seed)[1].items():
        if name.partition(".")[0] not in COPIED and not same(seen["controlnet"][name], tensor):
            return f"`{name}` is changed too, which is ControlNet's own: copy what the UNet has as well."
    return None


def unet_changed(seed: int, state: dict[str, Any]) -> str | None:
    unet = original_states(seed)[0]
    if set(state) != set(unet):
        return "the UNet has other weights afterwards than before: it must stay as it is."
    for name, tensor in unet.items():
        if not same(state[name], tensor):
            return f"the UNet's `{name}` is changed: the UNet must stay as it is."
    return None


def shares_weights(seed: int, seen: dict[str, Any]) -> str | None:
    """Training ControlNet has added 1 to each of its weights: does the UNet feel it?"""
    state, unet = seen["unet_after_training"], original_states(seed)[0]
    moved = [name for name in unet if name in state and same(state[name], unet[name] + 1)]
    if not moved:
        return None
    modules = [f"`{module}`" for module in COPIED if any(name.partition(".")[0] == module for name in moved)]
    return (
        f"{number_of(modules or moved)} {'shares' if len(modules) == 1 else 'share'} weights with the UNet instead of "
        f"copying them: training ControlNet would change the UNet, and freezing the UNet would freeze ControlNet."
    )


def frozen(seen: dict[str, Any]) -> str | None:
    for name in seen["controlnet"]:
        if name not in seen["trainable"]:
            return f"`{name}` is no parameter of ControlNet any more, so it would not be trained."
        if not seen["trainable"][name]:
            return f"`{name}` of ControlNet does not require a gradient, so it would not be trained."
        if not seen["trainable_beside_frozen_unet"].get(name):
            return f"freezing the UNet freezes `{name}` of ControlNet as well: they must not share parameters."
    return None


def silently_partial(seed: int, seen: dict[str, Any]) -> Note | None:
    """A copy from a UNet that calls one weight otherwise should stop, or be whole all the same.

    No UNet of the assignment calls one otherwise, so this is a note and no problem.
    """
    for path in MISFITS:
        run = seen["misfits"][path]
        weights = [tensor for name, tensor in original_states(seed)[0].items() if of_module(name, path)]
        if "error" not in run and not all_same(run["weights"], weights):
            return Note(
                f"the copy is whole, but not strict: where a UNet calls a weight otherwise (as under a LoRA, "
                f"`{path}.base_layer.weight`), ControlNet's `{path}.weight` would silently stay random. No UNet of the "
                f"assignment does, so this costs nothing; `strict=True` would say it."
            )
    return None


def of_module(name: str, path: str) -> bool:
    return name.partition(".")[0] == path.partition(".")[0]


# TODO (3): what the zero convolutions make


class RightResiduals(ControlNetEnd):
    """What must come out."""

    def __init__(self, layout: str, seed: int) -> None:
        super().__init__(layout, seed)
        self.down = [layer(skip) for layer, skip in zip(self.controlnet_down_blocks, self.skips)]
        self.mid = self.controlnet_mid_block(self.sample)

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
    skip, layers = right.skips[i], right.controlnet_down_blocks
    candidates = [
        ("is the feature itself, without its zero convolution", skip),
        ("went through its zero convolution twice", layers[i](right.down[i])),
        ("is the sum of the feature and its result", skip + right.down[i]),
        ("is multiplied with `conditioning_scale`, which happens after the place", 0.5 * right.down[i]),
    ]
    fitting = [j for j, layer in enumerate(layers) if layer.in_channels == skip.shape[1] and j != i]
    candidates += [(f"went through the wrong convolution, number {j}", layers[j](skip)) for j in fitting]
    if right.controlnet_mid_block.in_channels == skip.shape[1]:
        candidates.append(("went through the mid block's convolution", right.controlnet_mid_block(skip)))
    candidates += [(f"is made of the wrong feature, number {j}", layers[i](right.skips[j])) for j in fitting]
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
    mid, last = right.controlnet_mid_block, right.controlnet_down_blocks[-1]
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
