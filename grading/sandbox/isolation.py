"""Finds out from inside the sandbox what of its isolation is missing on this machine, and whether it works at all."""

from __future__ import annotations

import json
import sys

from .limits import Limits, SandboxError
from .sandbox import Sandbox

# Run inside, it prints the doors that are open.
PROBE = """
import json, os, socket, sys

def readable(top, shared):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in shared]
        for name in files:
            try:
                open(os.path.join(folder, name), "rb").close()
                return True
            except OSError:
                pass
    return os.path.isfile(top) and os.access(top, os.R_OK) and os.path.getsize(top) > 0

hidden, shared = json.loads(sys.argv[1])
try:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        print("the network can be reached")
except OSError:
    pass
for path in hidden:
    if readable(path, shared):
        print(f"{path} can be read")
"""


# Without one of these hand-ins would fail, for no fault of their own.
NEEDED = (
    "accelerate", "cryptography", "diffusers", "numpy", "peft", "PIL", "pypdf", "safetensors", "skimage", "torch",
    "transformers",
)  # fmt: skip
FIND = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if not importlib.util.find_spec(name)])"


def check_packages(sandbox: Sandbox) -> None:
    """Raises SandboxError if Python does not start in the sandbox, or does not find its packages."""
    outcome = sandbox.run([sys.executable, "-c", FIND, *NEEDED], Limits())
    if not outcome.succeeded or outcome.tail.strip():
        raise SandboxError(
            f"Python does not find its packages in the sandbox ({outcome.tail.strip() or outcome.limit}): install "
            f"requirements.txt into the environment of {sys.executable} itself, readable for every user."
        )


def isolation_gaps(sandbox: Sandbox) -> list[str]:
    """What is missing, in half sentences; empty if nothing is.

    Raises:
        SandboxError: if Python cannot be started inside.
    """
    known = (list(map(str, sandbox.hidden)), list(map(str, sandbox.shared)))
    outcome = sandbox.run([sys.executable, "-I", "-S", "-c", PROBE, json.dumps(known)], Limits())
    if not outcome.succeeded:
        raise SandboxError(f"Python does not start in the sandbox: {outcome.tail.strip() or outcome.limit}.")
    same_user = ["the code runs as the grader's own user"] if sandbox.user is None else []
    return [*same_user, *(line for line in outcome.tail.splitlines() if line)]
