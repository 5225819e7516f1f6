"""Runs the texts of the TODO places and writes down what they did, without judging it.

    python -m grading.checks.observe --task-1 task_1_controlnet --seed 7 --output observations --todo 3

A grader runs this in a process without rights, and judges the observations in its own (`judge` in `run.py`). What
the student's code prints, patches or claims then makes no difference: to pass, it has to bring the right numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable

import safetensors.torch
import torch
from torch import nn

from finetune.argument_types import file_path, seed_int

from ..handed_out.banners import TODOS, read_parts
from .places import USED_AROUND, ControlNetModel, Outcome, PlaceError, blamed_on, run
from .standins import (
    CONVOLUTIONS,
    LAYOUTS,
    MISFITS,
    ControlNetEnd,
    Convolution,
    ConvolutionInputs,
    UNetMiddle,
    fresh_models,
    gradients,
    hide,
)

# TODO (3): layout, and conditioning_scale, guess_mode and return_dict of `forward`, which applies them afterwards. A
# scale of 1 would hide that it is left out or applied twice.
SETTINGS = ((0.5, False, False), (0.5, False, True), (0.5, True, False), (0.5, True, True))
FORWARD_RUNS = tuple((layout, setting) for layout in LAYOUTS for setting in SETTINGS)
# TODO (4-1): layout, and what kind of sequence the residuals are (None: the UNet runs without ControlNet).
SKIP_RUNS = tuple((layout, kind) for layout in LAYOUTS for kind in ("tuple", "list", None))
# TODO (4-2): layout, and whether there is a ControlNet.
MID_RUNS = tuple((layout, controlled) for layout in LAYOUTS for controlled in (True, False))
# What `forward` still needs after the places.
NEEDED_AFTER_3 = ("conditioning_scale", "guess_mode", "return_dict")
NEEDED_AFTER_4_2 = ("emb", "encoder_hidden_states", "cross_attention_kwargs", "return_dict")
NEEDED_AFTER_4_1 = ("is_controlnet", "mid_block_additional_residual", *NEEDED_AFTER_4_2)


def record(value: Any) -> Any:
    """A value as plain data and float32 tensors of its own; `{"other": type}` for what is neither."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", torch.float32, copy=True).contiguous()
    if isinstance(value, (list, tuple)):
        return [record(item) for item in value]
    if isinstance(value, dict):
        return {str(key): record(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"other": type(value).__name__}


def attempt(todo: str, text: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns, or `{"error": ...}` where the student's code raises."""
    try:
        with blamed_on(todo, text):
            return function(*args)
    except PlaceError as error:
        return {"error": str(error)}


def hidden(todo: str, outcome: Outcome) -> list[str]:
    """What of `USED_AROUND` the text has set."""
    return [name for name in USED_AROUND[todo] if name in outcome.names]


# TODO (1)


def observe_zero_convolution(text: str, seed: int) -> dict[str, Any]:
    return {"convolutions": [attempt("1", text, observe_convolution, text, seed, asked) for asked in CONVOLUTIONS]}


def observe_convolution(text: str, seed: int, asked: Convolution) -> dict[str, Any]:
    outcome = run("1", text, **vars(asked))
    module = outcome.names.get("module") if outcome.reached else outcome.returned
    if not isinstance(module, nn.Module):
        return {"module": None if module is None else type(module).__name__, "is_module": False}
    inputs = ConvolutionInputs(asked, seed)
    return {
        "module": type(module).__name__,
        "is_module": True,
        "state": record(module.state_dict()),
        "trainable": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "fresh": attempt("1", text, lambda: {"output": record(module(inputs.image))}),
        "trained": attempt("1", text, observe_trained_convolution, module, inputs),
    }


def observe_trained_convolution(module: nn.Module, inputs: ConvolutionInputs) -> dict[str, Any]:
    """Its output and gradients once the zeros are gone."""
    module.load_state_dict({"weight": inputs.weight, "bias": inputs.bias})
    parameters = dict(module.named_parameters())
    output = module(inputs.image)
    leaves = [inputs.image, *(parameters[name] for name in ("weight", "bias") if name in parameters)]
    return {"output": record(output), "gradients": record(gradients([output], leaves))}


# TODO (2)


def observe_from_unet(text: str, seed: int) -> dict[str, Any]:
    seen = observe_copy(text, seed)
    if seen["is_module"]:
        seen["misfits"] = {path: attempt("2", text, observe_misfit, text, seed, path) for path in MISFITS}
    return seen


def copied_into(text: str, unet: nn.Module, controlnet: nn.Module) -> Any:
    outcome = run("2", text, cls=ControlNetModel, unet=unet, controlnet=controlnet)
    return outcome.names.get("controlnet") if outcome.reached else outcome.returned


def observe_copy(text: str, seed: int) -> dict[str, Any]:
    """The weights of both after the copy; then what freezing the UNet and training ControlNet change."""
    unet, controlnet = fresh_models(seed)
    result = copied_into(text, unet, controlnet)
    if not isinstance(result, nn.Module):
        return {"is_module": False, "kind": type(result).__name__}
    seen: dict[str, Any] = {"is_module": True}
    seen["controlnet"], seen["unet"] = record(result.state_dict()), record(unet.state_dict())
    seen["precisions"] = {name: str(tensor.dtype).partition(".")[2] for name, tensor in result.state_dict().items()}
    seen["trainable"] = {name: parameter.requires_grad for name, parameter in result.named_parameters()}
    unet.requires_grad_(False)
    seen["trainable_beside_frozen_unet"] = {name: p.requires_grad for name, p in result.named_parameters()}
    for parameter in result.parameters():
        parameter.data.add_(1)
    seen["unet_after_training"] = record(unet.state_dict())
    return seen


def observe_misfit(text: str, seed: int, path: str) -> dict[str, Any]:
    """The weights of one module, in order, after a copy from a UNet that calls one of them otherwise."""
    unet, controlnet = fresh_models(seed)
    hide(unet, path)
    result = copied_into(text, unet, controlnet)
    return {"weights": record(list(getattr(result, path.partition(".")[0]).state_dict().values()))}


# TODO (3)


def observe_zero_convolved(text: str, seed: int) -> dict[str, Any]:
    return {"runs": [attempt("3", text, observe_controlnet_end, text, seed, *one) for one in FORWARD_RUNS]}


def observe_controlnet_end(text: str, seed: int, layout: str, setting: tuple[float, bool, bool]) -> dict[str, Any]:
    end = ControlNetEnd(layout, seed)
    calls: list[str] = []
    for name, layer in end.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    scale, guess_mode, return_dict = setting
    outcome = run(
        "3", text, self=end, sample=end.sample, down_block_res_samples=end.skips,
        conditioning_scale=scale, guess_mode=guess_mode, return_dict=return_dict,
    )  # fmt: skip
    down, mid = (outcome.names.get(name) for name in ("down_block_res_samples", "mid_block_res_sample"))
    if not outcome.reached:
        down, mid = returned_residuals(outcome.returned, return_dict)
    outputs = [*down, mid] if isinstance(down, (list, tuple)) else [mid]
    return {
        "reached": outcome.reached,
        "calls": calls,
        "down": record(down),
        "mid": record(mid),
        "names": {name: record(outcome.names.get(name)) for name in NEEDED_AFTER_3},
        "hides": hidden("3", outcome),
        "gradients": record(gradients(outputs, end.leaves)),
    }


def returned_residuals(returned: Any, return_dict: bool) -> tuple[Any, Any]:
    """The two results, where the text returned them itself, in the form that `forward` was asked for."""
    if return_dict:
        return getattr(returned, "down_block_res_samples", None), getattr(returned, "mid_block_res_sample", None)
    return tuple(returned) if isinstance(returned, tuple) and len(returned) == 2 else (None, None)


# TODO (4-1), (4-2)


def observe_skips(text: str, seed: int) -> dict[str, Any]:
    return {"runs": [attempt("4-1", text, observe_skip_run, text, seed, *one) for one in SKIP_RUNS]}


def observe_skip_run(text: str, seed: int, layout: str, kind: str | None) -> dict[str, Any]:
    middle = UNetMiddle(layout, seed)
    residuals = {"tuple": middle.residuals, "list": list(middle.residuals), None: None}[kind]
    return observe_unet_middle("4-1", text, middle, middle.skips[-1], residuals)


def observe_mid(text: str, seed: int) -> dict[str, Any]:
    return {"runs": [attempt("4-2", text, observe_mid_run, text, seed, *one) for one in MID_RUNS]}


def observe_mid_run(text: str, seed: int, layout: str, controlled: bool) -> dict[str, Any]:
    middle = UNetMiddle(layout, seed)
    return observe_unet_middle("4-2", text, middle, middle.mid_sample, middle.residuals if controlled else None)


def observe_unet_middle(todo: str, text: str, middle: UNetMiddle, sample: torch.Tensor, residuals: Any) -> dict:
    """What the names are afterwards, and what became of the tensors that they stood for."""
    outcome = run(
        todo, text, self=middle.unet, sample=sample, down_block_res_samples=middle.skips,
        down_block_additional_residuals=residuals, **middle.names(residuals is not None),
    )  # fmt: skip
    down, after = outcome.names.get("down_block_res_samples"), outcome.names.get("sample")
    outputs = [*down] if isinstance(down, (list, tuple)) else []
    return {
        "reached": outcome.reached,
        "down": record(down),
        "sample": record(after),
        "given_sample": record(sample),
        "given_residuals": record([*(residuals or ()), middle.mid_residual]),
        "names": {name: record(outcome.names.get(name)) for name in NEEDED_AFTER_4_1},
        "hides": hidden(todo, outcome),
        "gradients": record(gradients([*outputs, after], middle.leaves)),
    }


OBSERVERS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "1": observe_zero_convolution,
    "2": observe_from_unet,
    "3": observe_zero_convolved,
    "4-1": observe_skips,
    "4-2": observe_mid,
}


def observe(todo: str, text: str, seed: int = 0) -> dict[str, Any]:
    """What the text of one TODO does, as plain data and tensors; `{"error": ...}` where it does nothing but raise."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        seen = attempt(todo, text, OBSERVERS[todo], text, seed)
        seen["gradients_on"] = torch.is_grad_enabled()
    return seen


def pack(seen: dict[str, Any]) -> bytes:
    """Observations as a safetensors file: reading it runs nothing."""
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if torch.is_tensor(value):
            tensors[f"tensor {len(tensors)}"] = value
            return {"tensor": f"tensor {len(tensors) - 1}"}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    structure = bytearray(json.dumps(plain(seen)).encode())
    return safetensors.torch.save({**tensors, "structure": torch.frombuffer(structure, dtype=torch.uint8)})


def unpack(data: bytes) -> dict[str, Any]:
    """The observations that `pack` wrote.

    Raises:
        ValueError: if the data are something else.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"tensor"} and isinstance(value["tensor"], str):
            return tensors[value["tensor"]]
        return {key: whole(item) for key, item in value.items()}

    try:
        tensors = safetensors.torch.load(data)
        seen = whole(json.loads(bytes(tensors.pop("structure").tolist())))
    except Exception as error:  # made by a process that ran the student's code: it can be anything
        raise ValueError(f"These are not observations: {error}") from error
    if not isinstance(seen, dict):
        raise ValueError("These are not observations.")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task-1", type=file_path, default=Path("task_1_controlnet"), help="folder of Task 1's code")
    parser.add_argument("--todo", choices=TODOS, nargs="+", default=TODOS, help="only these places")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the inputs; judge with the same")
    parser.add_argument("--output", type=file_path, required=True, help="folder for one N.safetensors a place")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = read_parts(args.task_1)
    args.output.mkdir(parents=True, exist_ok=True)
    for todo in args.todo:
        (args.output / f"{todo}.safetensors").write_bytes(pack(observe(todo, parts[todo], args.seed)))


if __name__ == "__main__":
    main()
