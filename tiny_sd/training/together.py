"""Several processes that train one model, each on samples of its own: started by torchrun, otherwise there is one.

On a CPU this is what uses its cores: two processes of one thread see more samples a second than one process of two
threads, whose threads wait for each other in every small operation, and for minutes when anything else runs.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Callable, Sequence

import torch
from torch import distributed


def join() -> None:
    """Meets the others that torchrun has started, if it has."""
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo", timeout=timedelta(days=1))  # the first draws and encodes for hours


def number_of_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait_for_all() -> None:
    if number_of_processes() > 1:
        distributed.barrier()


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Every process is left with the mean of all gradients."""
    if number_of_processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= number_of_processes()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view(gradient.shape))


def shared_out(
    work: Callable[[torch.Tensor], torch.Tensor], tasks: Sequence[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor]:
    """`work` of every task, of its shape and in `dtype`; each process does its share and is sent the others'."""
    processes = number_of_processes()
    owners = [0] * len(tasks)
    for place, task in enumerate(sorted(range(len(tasks)), key=lambda i: -tasks[i].numel())):
        owners[task] = place % processes  # the largest first, in turn
    done = [
        work(task).to(dtype).contiguous() if owner == rank() else torch.empty_like(task, dtype=dtype)
        for task, owner in zip(tasks, owners)
    ]
    if processes > 1:
        for result, owner in zip(done, owners):
            distributed.broadcast(result.view(torch.uint8), owner)  # as bytes: older gloo does not know bfloat16
    return done


def as_the_first(number: float) -> float:
    """The first process's `number`: clocks differ, and all have to stop at the same step."""
    if number_of_processes() == 1:
        return number
    shared = torch.tensor([number], dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return shared.item()
