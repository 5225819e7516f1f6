"""Lets two processes train by accelerate_configs/deepspeed_zero2.yaml on CPUs, for which accelerate starts only one.

accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml --num_processes 2 \
    tests/support/wrappers/deepspeed_on_cpu.py train.py ...     with DS_ACCELERATOR=cpu and ACCELERATE_TORCH_DEVICE=cpu
"""

from __future__ import annotations

import runpy
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
