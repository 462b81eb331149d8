"""Memory layout of weights and images."""

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Store the four-dimensional parameters and buffers of a module channels last, in place.

    `Module.to(memory_format=...)` fails on parameters of five dimensions, as those of convolutions
    whose kernels are mixed from several (CondConv, ODConv); they stay as they are here.

    Returns:
        The module itself, whose parameters are the same objects.
    """
    return module._apply(_stored)


def _stored(tensor: Tensor) -> Tensor:
    """Return a tensor of four dimensions channels last, another one as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
