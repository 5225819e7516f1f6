"""How many processes a launcher has started for this training, known before they are joined."""

from __future__ import annotations

import os

# Where mpirun says how many processes it has started, each in the releases of another maker.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MPI_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def processes_started() -> int:
    """How many processes a launcher (torchrun, accelerate launch, mpirun) has started for this training."""
    names = [*MPI_SIZES, *(["WORLD_SIZE"] if "LOCAL_RANK" in os.environ else [])]
    return max(int(os.environ.get(name, 1)) for name in names)


def is_main_process() -> bool:
    """Whether of the processes that a launcher has started this is the first; known before they are joined."""
    names = [*MPI_RANKS, *(["RANK"] if "LOCAL_RANK" in os.environ else [])]
    return all(int(os.environ.get(name, 0)) == 0 for name in names)
