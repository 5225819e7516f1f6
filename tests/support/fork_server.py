"""Starts programs as processes of their own that need not import PyTorch and its libraries again.

Reads a request a line, each of JSON, and answers with a line: {"arguments", "folder", "environment", "stdout",
"stderr"} starts what `python ARGUMENTS` would, and its process id is the answer; {"pid"} asks for its exit status, null
while it runs. The forked process becomes the program: its `__main__`, arguments, folder, environment, output and end.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import runpy
import sys
import threading
from typing import Any

LIBRARIES = (
    "accelerate", "diffusers.loaders.peft", "diffusers.pipelines.controlnet.pipeline_controlnet",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.schedulers.scheduling_unipc_multistep",
    "diffusers.schedulers.scheduling_ddpm", "huggingface_hub", "peft", "safetensors.torch", "skimage.color",
    "tensorboard.compat.proto.event_pb2", "torch._dynamo", "torch.utils.tensorboard", "tqdm.auto",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
)  # fmt: skip


def requested_program() -> dict[str, Any] | None:
    """Serves; returns in each forked process, with what it has to become, and None when nobody asks any more."""
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            answer = exit_status(request["pid"])
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def exit_status(pid: int) -> int | None:
    """As `subprocess` has it: minus the signal that ended the process."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def python_path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def become(program: dict[str, Any]) -> None:
    for number, (path, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            (program["stdout"], os.O_WRONLY | os.O_APPEND),
            (program["stderr"], os.O_WRONLY | os.O_APPEND),
        ]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    faulthandler.enable()  # else a crash would end it without a word
    os.chdir(program["folder"])
    before = python_path()
    os.environ.clear()
    os.environ.update(program["environment"])
    sys.path[1:] = [*python_path(), *(folder for folder in sys.path[1:] if folder not in before)]
    try:
        run(*program["arguments"])
        status = 0
    except SystemExit as said:
        status = said.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    # Of processes that train together the first is left to Python, so that a crash at its very end would be seen.
    if os.environ.get("RANK") != "0":
        end(status)
    sys.exit(status)


def run(name: str, *arguments: str) -> None:
    if name == "-m":
        name, *arguments = arguments
        sys.argv, sys.path[0] = [name, *arguments], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [name, *arguments], os.path.dirname(os.path.abspath(name))
        runpy.run_path(name, run_name="__main__")


def end(status: int) -> None:
    """What Python does at its end, but for taking all the libraries apart: that alone is half a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    gc.disable()  # nothing of it is garbage: looking for some took a sixth of the time
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # a collection in a forked process would else write to, and so copy, all that they share
    gc.enable()
    wanted = requested_program()
    if wanted is not None:
        become(wanted)
