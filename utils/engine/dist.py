"""Data-parallel training under torchrun: gloo on the CPU, nccl on GPUs.

With one process all functions do nothing and return their argument.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Place of this process among the processes of torchrun.

    Args:
        rank: Number of the process over all machines.
        local_rank: Number of the process on this machine; None without torchrun.
        size: Number of processes over all machines.
    """

    rank: int = 0
    local_rank: int | None = None
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process validates, saves and logs."""
        return self.rank == 0


def world_from_env() -> World:
    """Read this process's place from torchrun's environment variables; one process without them."""
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    return World(
        int(os.environ.get("RANK", "0")),
        int(os.environ["LOCAL_RANK"]),
        int(os.environ["WORLD_SIZE"]),
    )


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the other ranks for the time of the block.

    The timeout is three hours because the other ranks wait while rank 0 validates.
    """
    if world.size == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=timedelta(hours=3))
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_parallel(task: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Return the task wrapped so that backward averages its gradients over the ranks.

    With one process the task itself is returned. A module with a true `has_idle_layers` has
    parameters that may get no gradient; torch must search for those in every step then.
    """
    if world.size == 1:
        return task
    idle = any(getattr(module, "has_idle_layers", False) for module in task.modules())
    devices = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(task, device_ids=devices, find_unused_parameters=idle)


def without_sync(net: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Return a context for one forward and backward pass.

    Args:
        net: Result of `data_parallel`.
        wanted: Whether gradients only accumulate in this pass, so that ranks need not exchange
            them.
    """
    return net.no_sync() if wanted and isinstance(net, DistributedDataParallel) else nullcontext()


def broadcast(value: T, world: World) -> T:
    """Return rank 0's value on every rank; plain data only."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over the ranks in place and return it."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all ranks, in their order; the tensor alone with one process."""
    if not dist.is_initialized():
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor)
    return found


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Run the block on rank 0 first, for caches that rank 0 writes and the other ranks read."""
    if world.size > 1 and not world.main:
        dist.barrier()
    yield
    if world.size > 1 and world.main:
        dist.barrier()
