"""What a training program does before its first step: hardware, precision, processes, errors that a person can read."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.modeling_utils import ModelMixin

from .devices import (
    GPUS,
    HALF,
    bf16_is_fast,
    device_name,
    fast_precision,
    is_gpu,
    keep_freed_memory,
    pick_device,
    takes,
)
from .model.base import EMBEDDED_BASE, BaseModelError
from .model.dtypes import cast
from .model.single_file import SUFFIXES, is_single_file
from .objective import NonFiniteLossError
from .optimizer import SetupError, eight_bit_adam
from .run.checkpoints import CheckpointError
from .run.folder import RunFinished
from .run.processes import is_main_process, processes_started


@contextmanager
def fail_clearly() -> Iterator[None]:
    """Ends the program with the message of an error that the user can mend, without a traceback."""
    try:
        yield
    except RunFinished as finished:
        if is_main_process():  # of several processes one says it
            print(finished)
    # Only what a person can mend; any other error keeps its traceback, for whoever mends the code.
    except (SetupError, BaseModelError, CheckpointError, NonFiniteLossError, OSError, ValueError) as error:
        sys.exit(f"\nError: {without_traceback(error)}")


def without_traceback(error: Exception) -> str:
    """An error's message. What was raised in a worker of a `DataLoader` has a whole traceback in front of it."""
    message = str(error)
    if "Original Traceback" not in message:
        return message
    return re.split(rf"(?m)^(?:\w+\.)*{type(error).__name__}: ", message)[-1].rstrip()


def looks_local(name: str) -> bool:
    """Whether a base model's name can only be meant as a path: names of the hub are OWNER/NAME."""
    is_path = name.startswith((".", "/", "~")) or name.endswith(SUFFIXES) or "\\" in name
    return is_path or name.count("/") != 1 or Path(name).exists()


def would_run_on(base_model: str) -> torch.device:
    """The device that a training of this base is for: a GPU where the hardware here does not do."""
    device = pick_device()
    # A dry run on a laptop is asked what the GPU will need: the hub's models are not trained without one.
    here = Path(base_model).is_dir() or is_single_file(base_model)
    return device if is_gpu(device) or here else torch.device("cuda")


def require_hardware(base_model: str) -> None:
    """Raises SetupError for a folder that is not there, or for a model of the hub on a machine without a GPU."""
    if Path(base_model).is_dir() or is_single_file(base_model):
        return
    if looks_local(base_model):
        raise SetupError(
            f"There is no folder or file {base_model!r} in {Path.cwd()}: correct the base model's name. It must be a "
            "folder as diffusers saves it, a .safetensors or .ckpt file, or OWNER/NAME of the Hugging Face hub; or use "
            f"{EMBEDDED_BASE}."
        )
    if not is_gpu(pick_device()):
        raise SetupError(
            f"The base model {base_model!r} needs {GPUS}, and PyTorch {torch.__version__} finds none here.\n"
            f"- With an NVIDIA GPU: check that `nvidia-smi` works and that PyTorch was installed with CUDA.\n"
            f"- Without one: use {EMBEDDED_BASE}.\n"
            f"- If a folder was meant: there is no {base_model!r} in {Path.cwd()}."
        )


def frozen_dtype(mixed_precision: str, device: torch.device) -> torch.dtype:
    """Of frozen weights: on a GPU the half precision that was chosen (trained weights stay float32)."""
    return HALF.get(mixed_precision, torch.float32) if is_gpu(device) else torch.float32


def place_frozen(model: ModelMixin, accelerator: Accelerator) -> None:
    """Freezes a model on the device, in the type that `frozen_dtype` says."""
    model.requires_grad_(False)
    dtype = frozen_dtype(accelerator.mixed_precision, accelerator.device)
    model.to(accelerator.device)
    # Half of the memory for 860 M weights that never change: 1.7 GB in place of 3.4. What is trained stays in float32.
    if dtype != torch.float32:
        cast(model, dtype)


def use_fast_attention(model: ModelMixin, device: torch.device) -> None:
    """In bfloat16 on a CPU, training with two matrix products is a third faster than with PyTorch's fused attention."""
    if device.type == "cpu" and bf16_is_fast(device):
        # The fused kind never holds the table of all places with all places, which saves memory on a GPU. In float32 it
        # is the faster one on a CPU, too.
        model.set_attn_processor(AttnProcessor())


def precision_here(mixed_precision: str) -> str:
    """What "auto" stands for on this machine; anything else is what it is."""
    return fast_precision(pick_device()) if mixed_precision == "auto" else mixed_precision


def require_precision(mixed_precision: str) -> None:
    """Raises SetupError if this machine's GPU does not take the precision: accelerate's words would not help."""
    device = pick_device()
    if not takes(device, mixed_precision):
        raise SetupError(
            f"PyTorch {torch.__version__} and this system do not train in --mixed_precision {mixed_precision} on "
            f"{device.type}: use --mixed_precision auto, which is {fast_precision(device)!r} here."
        )


def require_compiler(device: torch.device) -> None:
    """Raises SetupError if PyTorch would write kernels for this GPU and lacks Triton, which compiles them."""
    if device.type in ("cuda", "xpu") and importlib.util.find_spec("triton") is None:
        raise SetupError(
            f"--compile needs Triton on {device.type}, which comes with PyTorch on Linux (on Windows: pip install "
            "triton-windows): install it, or leave out --compile."
        )


def join_processes_on_cpu() -> None:
    """Lets accelerate join what a launcher started without a GPU, where each process would train for itself.

    Raises:
        SetupError: if this PyTorch cannot.
    """
    if is_gpu(pick_device()) or processes_started() == 1 or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return
    if not hasattr(torch.cpu, "set_device"):
        raise SetupError(
            f"Several processes without a GPU need PyTorch 2.2 or later, and this is {torch.__version__}: start the "
            "program by `python` alone, without torchrun, accelerate launch or mpirun."
        )
    # Unless told so, accelerate joins processes by a GPU only: each would train by itself.
    os.environ["ACCELERATE_USE_CPU"] = "true"


def device_in_words(device: torch.device) -> str:
    return f"{device} ({device_name(device)})"


def precision_in_words(asked: str, chosen: str) -> str:
    """The precision, and why it is that."""
    name = {"no": "float32"}.get(chosen, chosen)
    if asked != "auto":
        return f"{name}, as --mixed_precision says"
    return f"{name}, as this machine is {'' if chosen == 'bf16' else 'not '}fast in bfloat16 (--mixed_precision auto)"


def flags_for_trackers(args: argparse.Namespace) -> dict[str, bool | int | float | str]:
    """All flags as TensorBoard and others take them: what is no number, text or switch becomes text."""
    values = vars(args).items()
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in values}


def require_one_folder(accelerator: Accelerator, folder: Path, patience: float = 60) -> None:
    """Raises SetupError if not all processes see the same `folder`: machines that share no disk would train wrongly.

    Only the first process reads checkpoints' names and writes encodings; `patience` seconds are for network disks.
    """
    if accelerator.num_processes == 1:
        return
    sign = folder / ".seen-by-all"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        sign.touch()
    accelerator.wait_for_everyone()
    end = time.monotonic() + patience
    while not sign.exists() and time.monotonic() < end:
        time.sleep(0.5)
    seen = accelerator.gather(torch.tensor([int(sign.exists())], device=accelerator.device))
    if accelerator.is_main_process:
        sign.unlink()
    if not seen.all():
        raise SetupError(
            f"{len(seen) - int(seen.sum())} of {len(seen)} processes do not see what the first one writes to "
            f"--output_dir {folder}: all machines need the same folder there, on a disk that they share."
        )


def start_accelerator(args: argparse.Namespace, name: str) -> Accelerator:
    """Device, precision and processes; logs under `output_dir/logs/name`, which begin with all flags; seeded.

    Raises:
        SetupError: if the processes that were started do not train together or see different disks, the GPU does not
            take the precision, or the tracker, 8-bit Adam or Triton is not installed.
    """
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise SetupError(f"--report_to {args.report_to} needs {args.report_to}: pip install {args.report_to}")
    require_precision(precision_here(args.mixed_precision))
    # Before the data are encoded, which may take hours.
    if args.use_8bit_adam:
        eight_bit_adam(pick_device())
    if args.compile:
        require_compiler(pick_device())
    join_processes_on_cpu()
    # DeepSpeed's launcher sets it, to its own default or "auto", and accelerate prefers it to the argument below.
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(args.gradient_accumulation_steps)
    logs = args.output_dir / "logs"
    accelerator = Accelerator(
        mixed_precision=precision_here(args.mixed_precision),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(logs)),
        # One process encodes the data while the others wait: hours, where PyTorch gives up after 10 or 30 minutes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    # A launcher may be unknown to this program: processes that train for themselves look like one that trains.
    if accelerator.num_processes != processes_started():
        raise SetupError(
            f"{processes_started()} processes were started, but each would train for itself: start the program by "
            "`python` alone, without torchrun, accelerate launch or mpirun."
        )
    require_one_folder(accelerator, args.output_dir)
    keep_freed_memory(accelerator.device)
    if args.report_to != "none":
        logs.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers(name, flags_for_trackers(args), {"wandb": {"dir": str(logs)}})
    precision = precision_in_words(args.mixed_precision_asked, accelerator.mixed_precision)
    accelerator.print(f"Device: {device_in_words(accelerator.device)}. Precision: {precision}.")
    # For what is drawn before the first step, such as a LoRA's first matrices; each step then has a seed of its own.
    set_seed(args.seed)
    return accelerator
