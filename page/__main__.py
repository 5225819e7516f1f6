"""`python -m page`: draw on a page in the browser, and see the ControlNet and the LoRAs at work.

`make page` installs Gradio first (requirements-page.txt).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path

from . import BASE, RUNS, TASK_1

NEEDS_GRADIO = "The page needs Gradio: `make page` installs it, or `pip install -r requirements-page.txt`."
LOCAL = ("127.0.0.1", "localhost", "::1")


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("python -m page", description=__doc__.splitlines()[0].partition(": ")[2])
    add = whole.add_argument
    add("--base", default=str(BASE), help="base model: folder, file, or hub name (default: the embedded one, tiny_sd)")
    add("--runs", type=Path, default=RUNS, help="the folder with what was trained (default: runs/)")
    add("--host", default="127.0.0.1", help="listen here; 0.0.0.0: to all who can reach this machine (default: itself)")
    add("--port", type=port_number, default=7860, help="(default: 7860)")
    add("--dry_run", action="store_true", help="say what was found and where the page would be, and start nothing")
    return whole


def tell(args: argparse.Namespace) -> None:
    """Device, precision, and what there is to draw with."""
    from finetune.devices import bf16_is_fast, drawing_dtype, pick_device
    from finetune.model.base import load_configs
    from finetune.setup import device_in_words

    from .found import controlnets, empty_places, loras

    device = pick_device()
    dtype = str(drawing_dtype(device)).partition(".")[2]
    if device.type == "cpu" and bf16_is_fast(device):
        dtype = "bfloat16, as this CPU is fast in it"
    nets, others = controlnets(args.runs, load_configs(args.base)[0])
    print(f"Base: {args.base}\nDevice: {device_in_words(device)}. Precision: {dtype}.")
    names = ", ".join(net.label for net in nets) or "none; `make demo` trains one for the embedded base"
    print(f"ControlNets for this base in {args.runs}: {names}" + (f" ({others} for others)" if others else ""))
    print(f"LoRAs in {args.runs}: {', '.join(lora.label for lora in loras(args.runs)) or 'none'}")
    empty = empty_places(TASK_1)
    if empty:
        print("Not filled in yet: " + "; ".join(f"TODO ({number}) {what}" for number, what in empty.items()))


def require_port(host: str, port: int) -> None:
    """Raises OSError if nothing can listen there, before the models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise OSError(
                f"Cannot listen on {host}:{port} ({error.strerror}): give another --port or --host."
            ) from error


def past_proxies(*hosts: str) -> None:
    """Gradio asks its own page whether it is there, which no proxy could answer."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *hosts]))


def start(args: argparse.Namespace) -> None:
    from finetune.model.single_file import as_folder
    from finetune.setup import require_hardware

    args.host = args.host.strip("[]")
    require_hardware(args.base)
    args.base = as_folder(args.base)
    tell(args)
    named = f"[{args.host}]" if ":" in args.host else args.host  # as IPv6 stands in addresses
    address = f"http://{'127.0.0.1' if args.host == '0.0.0.0' else named}:{args.port}"
    require_port(args.host, args.port)
    if args.host not in LOCAL:
        print(f"Whoever can reach this machine can draw with it: it listens on {args.host}.")
    if args.dry_run:
        return print(f"The page would be at {address}. Nothing was started (--dry_run).")
    if importlib.util.find_spec("gradio") is None:
        sys.exit(f"\nError: {NEEDS_GRADIO}")
    from .actions import Actions
    from .app import serve
    from .studio import Studio

    print("Loading ...", flush=True)
    past_proxies(args.host, named, "127.0.0.1", "localhost")
    page = serve(Actions(Studio(args.base), args.runs), named, args.port)
    print(f"Open {address} in a browser. Ctrl-C ends the page.", flush=True)
    page.block_thread()


def main() -> None:
    args = parser().parse_args()
    args.runs = args.runs.resolve()
    if Path(args.base).exists():
        args.base = os.path.relpath(args.base)
    from finetune.setup import fail_clearly  # PyTorch comes with it: after --help

    with fail_clearly():
        start(args)


if __name__ == "__main__":
    main()
