"""What is wrong with a TODO (2), the copy of the UNet's weights, in words, from what `observe.py` saw it do."""

from __future__ import annotations

from typing import Any, Iterator

from .comparing import all_same, same
from .problems import Note, number_of
from .standins import MISFITS, original_states

COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")


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
        yield "leaves ControlNet in float32", other_precision(seed, seen)
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
    missing, partial, altered = [], [], []
    for module in COPIED:
        names = [name for name in controlnet if name.partition(".")[0] == module]
        different = [name for name in names if not same(seen["controlnet"][name], unet[name])]
        if different and not any(same(seen["controlnet"][name], controlnet[name]) for name in different):
            altered.append(module)
        elif len(different) == len(names):
            missing.append(module)
        elif different:
            partial.append(f"{len(different)} of the {len(names)} tensors of `{module}` (such as `{different[0]}`)")
    if not missing and not partial and not altered:
        return None
    if any(same(seen["unet"].get(name), controlnet[name]) for name in controlnet):
        return "the copy goes the wrong way: ControlNet's random weights have replaced the UNet's."
    if len(missing) == len(COPIED):
        return "nothing is copied: ControlNet still has its random weights, not those of the UNet's encoder."
    if missing:
        names = number_of([f"`{module}`" for module in missing])
        return f"{names} {'is' if len(missing) == 1 else 'are'} not copied and would start from random weights."
    if altered:
        hold = "holds" if len(altered) == 1 else "hold"
        names = number_of([f"`{module}`" for module in altered])
        return f"{names} {hold} other values than the UNet's: copy them as they are."
    return f"the copy is partial: {number_of(partial)} are not the UNet's."


def other_weights_changed(seed: int, seen: dict[str, Any]) -> str | None:
    for name, tensor in original_states(seed)[1].items():
        if name.partition(".")[0] not in COPIED and not same(seen["controlnet"][name], tensor):
            return f"`{name}` is changed too, which is ControlNet's own: copy what the UNet has as well."
    return None


def other_precision(seed: int, seen: dict[str, Any]) -> str | None:
    for name in original_states(seed)[1]:
        if seen["precisions"][name] != "float32":
            return (
                f"`{name}` is {seen['precisions'][name]} afterwards: leave the weights in float32, in which both "
                f"models are given and ControlNet is trained."
            )
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
