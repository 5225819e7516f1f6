"""Where is computed, and what differs from one kind of device to another.

Asked in one place: CUDA, Intel's XPU and Apple's MPS take what a CPU takes, but not in every precision, and not all at
once.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import torch
from accelerate.utils import compare_versions, is_torch_version

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
# What is said of a machine that has none of them.
GPUS = "a GPU (CUDA, Intel's XPU or Apple's MPS)"
# Of glibc's `mallopt`: from how many bytes on memory comes straight from the system; how much may lie free.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def has_xpu() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()  # PyTorch 2.1 has it only from Intel's extension


def pick_device() -> torch.device:
    """The device of this machine's GPU, of the kind that accelerate finds too; without one the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("xpu" if has_xpu() else "cpu")


def is_gpu(device: torch.device) -> bool:
    return device.type in ("cuda", "xpu", "mps")


def takes(device: torch.device, precision: str) -> bool:
    """Whether a training with accelerate may be in this precision there: "no", "bf16" or "fp16".

    On MPS, autocast knows bfloat16 since PyTorch 2.6, where macOS has it (14), and float16 gradients can be scaled
    since PyTorch 2.8 (https://github.com/pytorch/pytorch/pull/139390 and 144022); accelerate took both up in 1.11.
    """
    if precision == "no" or device.type != "mps":
        return True
    if not compare_versions("accelerate", ">=", "1.11"):
        return False
    if precision == "fp16":
        return is_torch_version(">=", "2.8")
    return is_torch_version(">=", "2.6") and torch.backends.mps.is_macos_or_newer(14, 0)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 is what this device computes fastest in; a CPU without the instructions only imitates it."""
    if device.type == "cuda":
        # Not `torch.cuda.is_bf16_supported`: newer releases say yes to what CUDA only imitates, as on a T4 (7.5).
        return bool(torch.version.hip) or torch.cuda.get_device_capability() >= (8, 0)
    if device.type == "xpu":
        return not hasattr(torch.xpu, "is_bf16_supported") or torch.xpu.is_bf16_supported()
    if device.type == "mps":
        return takes(device, "bf16")
    return (
        # No public function says it. With the instructions bfloat16 is a third faster, without them 20 times slower.
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def fast_precision(device: torch.device) -> str:
    """What `--mixed_precision auto` stands for there: bf16 where that is fast, else fp16 where that is, else "no"."""
    if bf16_is_fast(device):
        return "bf16"
    if device.type == "cuda":
        return "fp16" if torch.cuda.get_device_capability() >= (7, 0) else "no"  # tensor cores came with Volta
    return "fp16" if device.type == "mps" and takes(device, "fp16") else "no"


def drawing_dtype(device: torch.device) -> torch.dtype:
    """What whole pipelines draw in: half precision on a GPU. On MPS where a training takes it: older PyTorch stops."""
    return torch.float16 if is_gpu(device) and takes(device, "fp16") else torch.float32


def has_float64(device: torch.device) -> bool:
    """MPS never has it, of Intel's GPUs many have not."""
    if device.type == "xpu":
        return bool(getattr(torch.xpu.get_device_properties(device), "has_fp64", False))
    return device.type != "mps"


def solves(device: torch.device) -> bool:
    """Whether `torch.linalg.solve` is there, which the sampler asks: on MPS it came after PyTorch 2.6."""
    return device.type != "mps" or is_torch_version(">=", "2.7")


def pins_memory(device: torch.device) -> bool:
    """Whether batches are to wait in pinned memory, which CUDA copies while it computes."""
    return device.type == "cuda"


def send(tensor: torch.Tensor, device: torch.device, **how: Any) -> torch.Tensor:
    """`tensor.to(device)`, without waiting for the copy only on CUDA.

    On MPS what was sent so has wrong values now and then, silently (https://github.com/pytorch/pytorch/issues/139550
    and 189690).
    """
    return tensor.to(device, non_blocking=pins_memory(device), **how)


def picture_layout(device: torch.device) -> torch.memory_format:
    """The layout in which the first convolutions, of large pictures with few channels, are faster on a CPU.

    Not on MPS, where convolutions in it have been wrong or failed (https://github.com/pytorch/pytorch/issues/174269).
    """
    # 57.8 images a second in place of 51.5 for a ControlNet's training, 300 in place of 268 for encoding (EPYC, 128 px,
    # 2026-11-26). For UNet and ControlNet themselves it brought nothing in bfloat16: dropped.
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def can_fuse(device: torch.device) -> bool:
    """Whether PyTorch's optimisers update all weights in one kernel there: a step of one number is tried.

    On MPS that kernel took no notice of gradients that had overflowed, so that float16's first overflow was every
    weight's end, before PyTorch 2.13 (https://github.com/pytorch/pytorch/pull/186360).
    """
    if device.type == "mps" and not is_torch_version(">=", "2.13"):
        return False
    # Tried and not looked up: which devices can differs from release to release.
    weight = torch.nn.Parameter(torch.zeros(1, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, memory that one tensor leaves is kept for the next, and not given back to the system.

    What comes back from there has to be cleared page by page. Only glibc's allocator can be told; others are left.
    """
    if device.type != "cpu" or os.name == "nt":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        # By itself it keeps tensors up to 32 MiB at most. 60 steps of the demo: 0.28 million page faults in place of
        # 4.1, 45 to 48 images a second in place of 38 to 43, and as much memory at the peak (EPYC, 2026-12-02).
        set_option(M_MMAP_THRESHOLD, 2**28)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def _functions(device: torch.device) -> Any:
    """PyTorch's module of functions for this kind of GPU."""
    return getattr(torch, device.type)


def synchronize(device: torch.device) -> None:
    """Waits for all that was asked of the device."""
    if is_gpu(device):
        _functions(device).synchronize()


def reset_peak(device: torch.device) -> None:
    """`peak_bytes` counts from here on, where peaks are counted."""
    if device.type in ("cuda", "xpu"):
        _functions(device).reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most that tensors held on the device since `reset_peak`. None on MPS and a CPU, where nobody counts it."""
    return _functions(device).max_memory_allocated() if device.type in ("cuda", "xpu") else None


def memory_bytes(device: torch.device) -> int | None:
    """How much the GPU has. None on MPS, which shares the system's, and without a GPU."""
    return _functions(device).get_device_properties(device).total_memory if device.type in ("cuda", "xpu") else None


def device_name(device: torch.device) -> str:
    """A GPU's name, as far as it is known; of a CPU how many threads compute."""
    if device.type in ("cuda", "xpu"):
        return _functions(device).get_device_name()
    cpu = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    return "Apple's GPU (MPS)" if device.type == "mps" else cpu
