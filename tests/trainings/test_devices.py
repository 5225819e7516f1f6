"""Apple's MPS and Intel's XPU are found like CUDA, and are asked for nothing that they cannot do.

Neither was at hand: what PyTorch says of them is replaced, and what is asked of them is looked at.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from finetune import devices, setup
from finetune.model import base as base_module
from finetune.model.sampler import _SolveOnCPU, sampling_scheduler
from finetune.objective import fixed_draws
from finetune.optimizer import SetupError, build_optimizer, set_hyperparameters
from finetune.run.records import peak_memory
from processes import BASE, run_python

KINDS = ["cuda", "mps", "xpu"]


@pytest.fixture
def machine(monkeypatch):
    """`machine("mps", torch="2.8")`: from then on PyTorch of this version finds this kind of GPU, and no other."""

    def pretend(
        kind: str, torch_version: str = "2.14", accelerate: str = "1.15", macos: int = 26, capability=(8, 6)
    ) -> torch.device:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *imitated: True)  # newer releases: everywhere
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major, raising=False)
        xpu = SimpleNamespace(is_available=lambda: kind == "xpu", is_bf16_supported=lambda: True)
        monkeypatch.setattr(torch, "xpu", xpu, raising=False)

        def at_least(installed: str, wanted: str) -> bool:
            return [int(part) for part in installed.split(".")] >= [int(part) for part in wanted.split(".")]

        monkeypatch.setattr(devices, "is_torch_version", lambda sign, wanted: at_least(torch_version, wanted))
        monkeypatch.setattr(devices, "compare_versions", lambda name, sign, wanted: at_least(accelerate, wanted))
        return torch.device(kind or "cpu")

    return pretend


@pytest.mark.skipif(os.name == "nt" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator alone")
def test_freed_memory_is_kept_for_the_next_tensors(tmp_path):
    """In a process of its own: this one's allocator may have been told already."""
    (tmp_path / "program.py").write_text(
        "import resource, torch\n"
        "from finetune.devices import keep_freed_memory\n"
        "def faults(tensors):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(tensors):\n"
        "        torch.ones(12_000_000)\n"  # 48 MB: more than glibc keeps by itself
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "told_nothing = faults(10)\n"
        "keep_freed_memory(torch.device('cpu'))\n"
        "print(told_nothing, faults(10))\n"
    )
    told_nothing, kept = map(int, run_python("program.py", folder=tmp_path).stdout.split())
    assert kept < told_nothing / 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gpu_is_found_and_good_for_stable_diffusion(machine, kind):
    machine(kind)
    assert devices.pick_device().type == kind
    setup.require_hardware("CompVis/stable-diffusion-v1-4")
    assert devices.drawing_dtype(devices.pick_device()) == torch.float16


def test_without_any_of_them_the_message_names_all(machine):
    machine("")
    assert devices.pick_device().type == "cpu"
    with pytest.raises(SetupError, match="needs a GPU .CUDA, Intel's XPU or Apple's MPS., and PyTorch .* finds none"):
        setup.require_hardware("CompVis/stable-diffusion-v1-4")


@pytest.mark.parametrize(
    "found, auto, refused",
    [
        (("cuda",), "bf16", ()),
        (("cuda", "2.14", "1.15", 0, (7, 5)), "fp16", ()),
        (("cuda", "2.14", "1.15", 0, (6, 1)), "no", ()),
        (("xpu",), "bf16", ()),
        (("mps",), "bf16", ()),
        (("mps", "2.8", "1.15", 13), "fp16", ("bf16",)),
        (("mps", "2.7"), "bf16", ("fp16",)),
        (("mps", "2.5"), "no", ("fp16", "bf16")),
        (("mps", "2.14", "1.10"), "no", ("fp16", "bf16")),
        (("mps", "2.1", "0.33"), "no", ("fp16", "bf16")),
    ],
)
def test_the_precision_is_one_that_the_gpu_takes(machine, found, auto, refused):
    machine(*found)
    assert setup.precision_here("auto") == auto
    for precision in ("no", "fp16", "bf16"):
        if precision in refused:
            with pytest.raises(SetupError, match=f"{precision} on mps: use --mixed_precision auto, .* '{auto}' here"):
                setup.require_precision(precision)
        else:
            setup.require_precision(precision)


def test_fused_steps_are_not_taken_where_they_do_not_mind_an_overflow(machine, monkeypatch):
    """On MPS before PyTorch 2.13 the scaler leaves it to the kernel, and the kernel knows nothing of it."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, fused: SimpleNamespace(step=lambda: None))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(1))
    for version, fused in (("2.12", False), ("2.13", True)):
        assert devices.can_fuse(machine("mps", version)) is fused


def test_compiling_for_a_gpu_without_triton_is_refused_at_once(machine, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else found(name))
    machine("cuda")
    flags = {"mixed_precision": "no", "report_to": "none", "use_8bit_adam": False, "compile": True}
    with pytest.raises(SetupError, match="--compile needs Triton on cuda"):
        setup.start_accelerator(argparse.Namespace(output_dir=tmp_path, **flags), "controlnet")
    setup.require_compiler(machine(""))


def test_the_sampler_draws_the_same_where_the_gpu_solves_no_equations(machine):
    """What it solves goes to the CPU, whatever the numbers are on; here the meta device is not asked either."""
    drawn, kinds = [], []
    for version in ("2.6", "2.7"):
        machine("mps", version)
        scheduler = sampling_scheduler(DDPMScheduler().config)
        scheduler.set_timesteps(8)
        sample = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample.sin(), timestep, sample).prev_sample
        drawn.append(sample)
        kinds.append(type(scheduler))
    assert torch.equal(*drawn) and kinds[0] is not kinds[1]
    asked = []

    class Asked(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if function is torch.linalg.solve:
                asked.append({matrix.device.type for matrix in args})
                return torch.ones(len(args[1]))
            if getattr(function, "__name__", "") == "cpu":
                return torch.ones(args[0].shape)
            return function(*args, **(kwargs or {}))

    with Asked(), _SolveOnCPU():
        solved = torch.linalg.solve(torch.eye(2, device="meta"), torch.ones(2, device="meta"))
    assert asked == [{"cpu"}] and solved.device.type == "meta"


def test_a_refused_precision_stops_before_anything_is_begun(machine, tmp_path):
    machine("mps", "2.5")
    args = argparse.Namespace(output_dir=tmp_path, mixed_precision="fp16", report_to="none")
    with pytest.raises(SetupError, match="fp16 on mps"):
        setup.start_accelerator(args, "controlnet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_model_is_in_half_precision_on_every_kind_of_gpu(kind, monkeypatch):
    """On the meta device under the GPU's name: there is none to move to."""
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(model, "to", lambda device: model)
    setup.place_frozen(model, SimpleNamespace(mixed_precision="fp16", device=torch.device(kind)))
    assert model.weight.dtype == torch.float16 and not model.weight.requires_grad


def test_a_checkpoint_of_a_device_that_fuses_goes_on_where_none_does(monkeypatch):
    """Its optimiser says that it does; PyTorch 2.1 on a CPU, say, would stop at the first step."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr_ratio": 1.0}]
    monkeypatch.setattr("finetune.optimizer.can_fuse", lambda device: False)
    optimizer = build_optimizer(groups, 1e-3, False, torch.device("cpu"))
    state = optimizer.state_dict()
    state["param_groups"][0]["fused"] = True
    optimizer.load_state_dict(state)
    set_hyperparameters(optimizer, 1e-3, [1.0])
    assert optimizer.param_groups[0]["fused"] is False


class Sent:
    """In a tensor's place: how it was asked to go to a device."""

    def to(self, device: torch.device, **how: Any) -> dict[str, Any]:
        return how


@pytest.mark.parametrize("kind, at_once", [("cuda", False), ("mps", True), ("xpu", True), ("cpu", True)])
def test_only_cuda_gets_batches_while_it_computes(kind, at_once):
    """On MPS such copies have had wrong values."""
    device = torch.device(kind)
    base = SimpleNamespace(encoded=base_module.BaseModel.encoded)
    sent = base.encoded(base, {"latents": Sent(), "text_embeddings": Sent()}, device)
    assert sent == ({"non_blocking": not at_once},) * 2
    assert devices.pins_memory(device) is not at_once


def test_mps_gets_no_layout_of_which_it_computes_something_else():
    assert devices.picture_layout(torch.device("mps")) == torch.contiguous_format
    assert devices.picture_layout(torch.device("cpu")) == torch.channels_last


class No64(TorchDispatchMode):
    """Refuses what MPS refuses: numbers of 64 bits after the point."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.dim():
                made_by_hand = function in (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach.default)
                assert made_by_hand, f"{function} gives float64"
        return result


def test_no_float64_reaches_a_device_without_it(monkeypatch):
    """A timestep that is a number, or a tensor of a scheduler that counts in float64, gives what float32 gives."""
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    sample, text = torch.randn(1, unet.config.in_channels, 8, 8), torch.randn(1, 4, unet.config.cross_attention_dim)
    monkeypatch.setattr("diffusion.modeling.has_float64", lambda device: False)
    with torch.no_grad(), No64():
        given = [unet(sample, t, text).sample for t in (37.5, torch.tensor(37.5), torch.tensor(37.5).double())]
    assert torch.equal(given[0], given[1]) and torch.equal(given[2], given[1])
    assert not devices.has_float64(torch.device("mps")) and devices.has_float64(torch.device("cuda"))


def test_held_out_draws_count_in_float64_on_the_cpu_alone():
    weights = torch.linspace(1, 2, 10)

    class OnMPS:
        def cpu(self) -> torch.Tensor:
            return weights

        def double(self) -> None:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    batch = {"noise_seed": torch.tensor([3]), "quantile": torch.tensor([0.5])}
    drawn = [fixed_draws(batch, torch.zeros(1, 4, 2, 2), given) for given in (OnMPS(), weights)]
    assert all(map(torch.equal, *drawn))


def test_eight_bit_adam_is_refused_where_it_cannot_run():
    with pytest.raises(SetupError, match="do not run on MPS"):
        build_optimizer([torch.nn.Parameter(torch.zeros(2))], 1e-3, True, torch.device("mps"))


def test_the_optimiser_is_fused_exactly_where_pytorch_allows_it():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    try:
        torch.optim.AdamW([weight], fused=True).step()
        allowed = bool(weight.any())
    except RuntimeError:
        allowed = False
    assert devices.can_fuse(torch.device("cpu")) is allowed
    (group,) = build_optimizer([weight], 1e-3, False, torch.device("cpu")).param_groups
    assert bool(group["fused"]) is allowed


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_each_gpu_is_waited_for_and_measured_by_its_own_functions(kind, monkeypatch):
    asked = []

    def answer(name: str) -> Any:
        return lambda: asked.append(name) or 7

    names = ["synchronize", "max_memory_allocated", "reset_peak_memory_stats"]
    functions = names[:1] if kind == "mps" else names  # MPS counts no peak
    monkeypatch.setattr(torch, kind, SimpleNamespace(**{name: answer(name) for name in functions}), raising=False)
    device = torch.device(kind)
    devices.synchronize(device)
    devices.reset_peak(device)
    assert devices.peak_bytes(device) == (None if kind == "mps" else 7)
    assert peak_memory(device) == (None if kind == "mps" else 7), "not what the process took of the system"
    assert sorted(set(asked)) == sorted(functions)


def test_a_cpu_is_not_waited_for():
    devices.synchronize(torch.device("cpu"))
    devices.reset_peak(torch.device("cpu"))
    assert devices.peak_bytes(torch.device("cpu")) is None
    assert "CPU threads" in devices.device_name(torch.device("cpu"))
