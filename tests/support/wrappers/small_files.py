"""Runs a program that cannot write more than so many bytes to a file, as on a full disk.

python tests/support/wrappers/small_files.py BYTES train.py ...
"""

from __future__ import annotations

import resource
import runpy
import sys

most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.argv = sys.argv[2:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
