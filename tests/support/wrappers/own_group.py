"""Runs a program as a terminal or a cluster does: a signal to its group comes to all processes that it starts.

python tests/support/wrappers/own_group.py train.py ...
"""

from __future__ import annotations

import os
import runpy
import sys

os.setpgrp()
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
