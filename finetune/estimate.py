"""What a training step costs, found before it is taken: memory, and floating-point operations.

A step is rehearsed on tensors that have a shape and a type but no contents (PyTorch's FakeTensorMode), and what is
alive is added up at every operation. Not in it: the libraries themselves and CUDA's own memory (some hundred MiB each),
the workspace of kernels, and what is lost between blocks.
"""

from __future__ import annotations

import argparse
import weakref
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, Iterator, Sequence
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.utils import is_torch_version
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from .model.dtypes import cast
from .optimizer import build_optimizer
from .run.processes import processes_started

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("weights", "gradients", "optimizer", "rest")
# bitsandbytes keeps each average as bytes with a float32 for every 256; averages of fewer than 4096 numbers whole.
BLOCK, SMALL = 256, 4096


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of all storages that were made within it and are alive, by kind, and keeps their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[weakref.ref, int, str]] = {}
        self.live = dict.fromkeys(KINDS, 0)
        self.peak = dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls: asked anew, each would take as long as an operation
        # Every operation of the step comes by here, the backward pass and the optimiser's own, too.
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.label(tensor, None)
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)
        return result

    def label(self, tensor: torch.Tensor, kind: str | None) -> None:
        """Counts a tensor's storage as `kind` from now on; None: a new one as `rest`, a known one as before."""
        # By storage: views and transposes of a tensor are other tensors in the same memory.
        storage = tensor.untyped_storage()
        key = storage._cdata
        _, size, before = self.known.get(key, (None, storage.nbytes(), None))
        if before is not None and kind in (None, before):
            return
        if before is not None:
            self.live[before] -= size
        kind = kind or "rest"
        self.live[kind] += size
        # Weak, so that being counted keeps nothing alive; when a tensor goes its bytes go from the sum.
        self.known[key] = (weakref.ref(storage, partial(self.forget, key)), size, kind)

    def forget(self, key: int, reference: weakref.ref) -> None:
        # An address may be another storage's by now: only the one that this reference is of is forgotten.
        if key in self.known and self.known[key][0] is reference:
            _, size, kind = self.known.pop(key)
            self.live[kind] -= size

    def restart(self) -> None:
        self.peak = dict(self.live)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Norms in float32, as autocast computes them there. On a CPU it leaves them in half."""

    def in_float32(norm: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            # Such a copy is kept for the backward pass: without it too little memory would be expected.
            args = [a.float() if isinstance(a, torch.Tensor) and a.dtype in HALF.values() else a for a in args]
        return norm(*args, **kwargs)

    # Not by a TorchFunctionMode: what checkpointing computes again in the backward pass would not see it.
    with patch.object(F, "group_norm", partial(in_float32, F.group_norm)):
        with patch.object(F, "layer_norm", partial(in_float32, F.layer_norm)):
            yield


def convert(module: torch.nn.Module, function: Callable, recurse: bool = True) -> torch.nn.Module:
    """In place of PyTorch's `Module._apply`, which exchanges the contents of tensors: these have none."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            with torch.no_grad():
                converted = parameter if parameter is None else function(parameter)
            if converted is not parameter:
                part._parameters[name] = torch.nn.Parameter(converted, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer if buffer is None else function(buffer)
    return module


@contextmanager
def simulation() -> Iterator[None]:
    """Within it tensors have no contents, and modules of such tensors may be cast. No file may be loaded."""
    # On a CPU's fake tensors also where there is a GPU: the backward pass of a GPU's would start CUDA.
    with patch.object(torch.cuda, "is_available", lambda: False), patch.object(torch.nn.Module, "_apply", convert):
        # Shapes and types without contents: Stable Diffusion's step is rehearsed in seconds, on a laptop. Within 5 % of
        # what an H200 took (tests/repository/test_benchmarks_memory.py).
        with FakeTensorMode(allow_non_fake_inputs=True), without_values():
            yield


@contextmanager
def without_values() -> Iterator[None]:
    """Layers made within it draw no initial weights: where tensors have no contents, that takes a fifth of the time."""
    with patch.object(torch.nn.Linear, "reset_parameters", lambda layer: None):
        with patch.object(torch.nn.Conv2d, "reset_parameters", lambda layer: None):
            yield


@contextmanager
def on_meta() -> Iterator[None]:
    """Within it tensors have no contents either, and nothing is known of them but shapes and types."""
    with torch.device("meta"), without_values():
        yield


def cast_frozen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Gives all weights but the trained ones this type; those stay float32."""
    trainable = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    cast(model, dtype)
    for name, parameter in model.named_parameters():
        if name in trainable:
            parameter.requires_grad_(True).data = trainable[name]


class Rehearsal:
    """One step of a training on models that were made where this is: in a simulation, or on PyTorch's meta device.

    Args:
        networks: all that are needed in a step, frozen or trained.
        predict: the prediction for a batch, of any shape.
        precision: what autocast computes in; "no" for float32.
    """

    def __init__(
        self,
        networks: Sequence[torch.nn.Module],
        predict: Callable[[], torch.Tensor],
        precision: str = "no",
    ) -> None:
        self.networks, self.predict, self.precision = networks, predict, precision
        self.parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
        # The optimiser has a share: AdamW's averages are twice as large as what is trained.
        self.optimizer = build_optimizer(self.parameters, 1e-5, False, torch.device("cpu"))

    def backward(self) -> None:
        # bfloat16 for both kinds of half precision: they take the same memory.
        with torch.autocast("cpu", torch.bfloat16) if self.precision in HALF else nullcontext():
            prediction = self.predict()
            loss = F.mse_loss(prediction.float(), torch.empty_like(prediction, dtype=torch.float32))
        loss.backward()

    def __call__(self) -> None:
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_peaks(make: Callable[[], Any], accumulated: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind before a step, when the optimiser has its averages, and at its peak.

    `make`, called in a simulation, makes a `Rehearsal`, or what has its `networks`, `parameters` and `optimizer`.
    `accumulated`: other batches of the step have left their gradients.
    """
    with LiveStorages() as live:
        step = make()
        for network in step.networks:
            for parameter in network.parameters():
                live.label(parameter, "weights")
        for parameter in step.parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: live.label(p.grad, "gradients"))

        def fill_gradients() -> None:
            for parameter in step.parameters:
                parameter.grad = torch.empty_like(parameter)
                live.label(parameter.grad, "gradients")

        # The optimiser makes its averages when it is first called, whatever the gradients are that it finds: forward
        # and backward, which take the time, are rehearsed once.
        fill_gradients()
        step.optimizer.step()
        step.optimizer.zero_grad()
        for tensor in tensors_in(list(step.optimizer.state.values())):
            live.label(tensor, "optimizer")
        before = dict(live.live)
        if accumulated:
            fill_gradients()
        live.restart()
        step()
        return before, live.peak


def eight_bit_bytes(sizes: Sequence[int]) -> int:
    """Of 8-bit Adam's averages for parameters of so many numbers."""
    small = sum(size for size in sizes if size < SMALL)
    large = [size for size in sizes if size >= SMALL]
    # Two averages: float32 for small tensors, else a byte each and a float32 for every block.
    return 2 * (4 * small + sum(size + 4 * -(-size // BLOCK) for size in large))


def can_simulate() -> bool:
    return is_torch_version(">=", "2.5")


def expected_memory(
    make: Callable[[], Rehearsal], like_cuda: bool, eight_bit: bool = False, accumulation: int = 1
) -> dict[str, int]:
    """Bytes by kind at the peak of a step of so many batches.

    Before PyTorch 2.5 without `rest`, which only a simulation knows.
    """
    if can_simulate():
        sizes: list[int] = []

        def counted() -> Rehearsal:
            step = make()
            sizes.extend(p.numel() for p in step.parameters)
            return step

        with simulation(), as_on_cuda() if like_cuda else nullcontext():
            peak = step_peaks(counted, accumulation > 1)[1]
    else:
        with on_meta():
            step = make()
        sizes = [p.numel() for p in step.parameters]
        weights = sum(p.numel() * p.element_size() for network in step.networks for p in network.parameters())
        # float32: a gradient of 4 bytes, and two averages of 4 for each number that is trained.
        peak = {"weights": weights, "gradients": 4 * sum(sizes), "optimizer": 8 * sum(sizes)}
    return {**peak, "optimizer": eight_bit_bytes(sizes) if eight_bit else peak["optimizer"]}


def count_flops(make: Callable[[str], Rehearsal]) -> int:
    """Of the forward and the backward pass of one batch: two for each multiplication with an addition."""
    with on_meta():
        step = make("no")  # there is no autocast there, and half precision takes as many
    return flops_of(step)


def flops_of(step: Rehearsal) -> int:
    """As `count_flops`, of what was made on PyTorch's meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        step.backward()
    return counter.get_total_flops()


def in_millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M"


def flops_in_words(flops: int, batches: int) -> str:
    """What a step takes of so many batches."""
    total = flops * batches / 1e9
    return f"{f'{total:,.0f}' if total >= 100 else f'{total:.3g}'} GFLOP a step, forward and backward"


def work_in_words(prepare: Callable[[], Callable[[str], Rehearsal]], batches: int) -> str:
    """What a step of so many batches takes, or why it could not be counted."""
    try:
        flops = count_flops(prepare())
    except Exception as error:  # whatever the models' code does that needs contents: a training can do without
        return f"the work of a step could not be counted ({type(error).__name__}: {error})"
    return f"work: {flops_in_words(flops, batches)}, of each process"


def memory_in_words(memory: dict[str, int], like_cuda: bool) -> str:
    names = {"optimizer": "optimiser", "rest": "activations and the rest"}
    parts = " + ".join(f"{memory[kind] / 2**30:.2f} {names.get(kind, kind)}" for kind in KINDS if kind in memory)
    where = "as on a CUDA GPU" if like_cuda else "as on this CPU"
    known = "" if "rest" in memory else "; activations come on top (PyTorch 2.5 and later know how much)"
    return (
        f"{sum(memory.values()) / 2**30:.2f} GiB at the peak of a step, {where}: {parts}{known}. Not in it: the "
        f"libraries and CUDA themselves, workspace of kernels, and the encoders while the data are encoded."
    )


def dry_run(args: argparse.Namespace, make: Callable[[], Rehearsal], device: torch.device, samples: int | None) -> None:
    """Prints what a training with these flags would be, and does nothing else.

    Args:
        make: makes the `Rehearsal` of one batch in a precision.
        device: what the training is for.
        samples: how many there are; None if that is known only when the data are downloaded.
    """
    print("A dry run: nothing is started, and nothing is written.\n")
    for name, value in sorted(vars(args).items()):
        print(f"  {name:<34}{value}")
    with on_meta():
        step = make("no")
    everything = sum(p.numel() for network in step.networks for p in network.parameters())
    trained = sum(p.numel() for p in step.parameters)
    print(f"\nTrained: {in_millions(trained)} parameters, beside {in_millions(everything - trained)} that are frozen")
    samples_a_step = args.train_batch_size * args.gradient_accumulation_steps * processes_started()
    epochs = "how many steps are an epoch is known when the data are downloaded"
    if samples is not None:
        # Batches go on over the end of an epoch, so a step may see several.
        steps, all_epochs = -(-samples // samples_a_step), args.max_train_steps * samples_a_step / samples
        epochs = f"{samples:,} samples are an epoch of {steps:,} steps, {all_epochs:,.1f} epochs in all"
    print(f"Steps: {args.max_train_steps:,}, each of {samples_a_step} samples; {epochs}")
    print(f"Work: {flops_in_words(flops_of(step), args.gradient_accumulation_steps)}")
    like_cuda = device.type != "cpu"
    accumulation = args.gradient_accumulation_steps
    memory = expected_memory(partial(make, args.mixed_precision), like_cuda, args.use_8bit_adam, accumulation)
    print(f"Memory: {memory_in_words(memory, like_cuda)}")
