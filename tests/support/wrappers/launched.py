"""Stands for a program that a launcher starts: writes down how it was started, and stays until that has been done.

torchrun --nproc_per_node 2 tests/support/wrappers/launched.py FOLDER train.py ...
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

folder, parent = Path(sys.argv[1]), os.getppid()
started = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
unfinished = folder / f"{os.environ['RANK']}.tmp"
unfinished.write_text(json.dumps(started))
unfinished.rename(unfinished.with_suffix(".json"))
while not (folder / "done").exists():
    if os.getppid() != parent:  # the launcher was killed
        sys.exit(1)
    time.sleep(0.02)
