"""Data-parallel training under torchrun: gloo on the CPU, nccl on GPUs.

Everything here is harmless with one process.
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
    """This process among those of torchrun.

    `local_rank` is its place on this machine, None without torchrun.
    """

    rank: int = 0
    local_rank: int | None = None
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process validates, saves and logs."""
        return self.rank == 0


def world_from_env() -> World:
    """What torchrun put into the environment; one lone process without it."""
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

    The timeout is long because the others wait while rank 0 validates.
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
    """The task wrapped so that backward averages its gradients over the ranks; itself where there
    is one process.

    A module with `has_idle_layers` set says that some of its parameters may get no gradient, which
    has to be looked for.
    """
    if world.size == 1:
        return task
    idle = any(getattr(module, "has_idle_layers", False) for module in task.modules())
    devices = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(task, device_ids=devices, find_unused_parameters=idle)


def without_sync(net: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """While gradients only accumulate the ranks need not talk: a context for such a forward and
    backward.
    """
    return net.no_sync() if wanted and isinstance(net, DistributedDataParallel) else nullcontext()


def broadcast(value: T, world: World) -> T:
    """Rank 0's value on every rank (plain data)."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """The tensor summed over the ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Rank 0 runs the block before the others do: it writes caches that they then read."""
    if world.size > 1 and not world.main:
        dist.barrier()
    yield
    if world.size > 1 and world.main:
        dist.barrier()
