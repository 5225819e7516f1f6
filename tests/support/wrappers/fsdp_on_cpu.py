"""Runs a program as accelerate_configs/fsdp.yaml asks for, but on CPUs, where accelerate does not offer FSDP.

torchrun --nproc_per_node 2 tests/support/wrappers/fsdp_on_cpu.py train.py ...
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

CONFIG = Path(__file__).resolve().parents[3] / "accelerate_configs" / "fsdp.yaml"
args = launch.launch_command_parser().parse_args(["--config_file", str(CONFIG), *sys.argv[1:]])
asked_for = launch.prepare_multi_gpu_env(launch._validate_launch_command(args)[0])
os.environ.update({name: value for name, value in asked_for.items() if name.startswith("FSDP_")})
initialise, plugin = AcceleratorState.__init__, FullyShardedDataParallelPlugin()


def initialise_for_fsdp(self: AcceleratorState, *args, **kwargs) -> None:
    initialise(self, *args, **kwargs)
    self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


AcceleratorState.__init__ = initialise_for_fsdp
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
