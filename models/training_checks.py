"""What blocks of users may do in training that their model must cope with.

A batch norm may see a single value a channel, of which no variance can be taken; a parameter may
never be used, for whose gradient data parallel training would wait.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.log import LOGGER

TRACE_SIZE = 128  # pixels, or twice the largest stride


@contextmanager
def single_values_borne(model: nn.Module) -> Iterator[None]:
    """Let batch norms use their running statistics for a single value a channel, in training.

    A last batch of one image, behind a global pooling as in ASPP, has no variance; PyTorch raises
    an error for it.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    handles = [norm.register_forward_pre_hook(_freeze) for norm in norms]
    handles += [norm.register_forward_hook(_thaw, always_call=True) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _freeze(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Put a batch norm into eval mode where its input has a single value a channel."""
    x = inputs[0]
    if module.training and x.numel() == x.shape[1]:
        _say_once()
        module.training = False
        module._single_value = True  # type: ignore[assignment]  # a mark for `_thaw`


def _thaw(module: nn.Module, inputs: Any, output: Any) -> None:
    """Put a batch norm back that `_freeze` has put into eval mode."""
    if module.__dict__.pop("_single_value", False):
        module.training = True


@cache
def _say_once() -> None:
    LOGGER.warning(
        "a batch norm sees a single value a channel (one image, pooled to one cell): it uses its"
        " running statistics for it"
    )


def unused_parameters(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that get no gradient in training.

    Args:
        model: A detector in training form, which is not changed.
    """
    probe = copy.deepcopy(model).train().requires_grad_(True)
    wanted = [name for name, p in model.named_parameters() if p.requires_grad]
    size = max(TRACE_SIZE, 2 * getattr(model, "max_stride", 1))
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    maps = probe(images.to(next(probe.parameters())))
    torch.stack([raw.float().sum() for raw in maps]).sum().backward()
    used = {name for name, p in probe.named_parameters() if p.grad is not None}
    return [name for name in wanted if name not in used]
