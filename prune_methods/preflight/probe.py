"""Proof before the cut: remove a quarter of all channels from a copy and compare the outputs."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import LIBRARY_ERRORS, TRACE_SIZE, ChannelGroup, one_line
from prune_methods.surgery.cut import TOLERANCE, cut, largest_difference, zero_channels

SHARE = 0.25
Item = TypeVar("Item")


def probe(
    model: nn.Module, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[tuple[ChannelGroup, str]]]:
    """Split groups into those that can be cut as the graph says, and the others with the reason.

    All groups are tried at once; only where that fails the culprits are searched for. The model is
    left untouched.
    """
    if not groups:
        return [], []
    index = ChannelIndex(randomize_bn(model), groups)

    def failure(chosen: list[ChannelGroup]) -> str | None:
        among = {g.name for g in chosen}
        masks = {g.name: _mask(g, i, g.name in among) for i, g in enumerate(groups)}
        return _failure(index, masks)

    return largest_passing(groups, failure)


def randomize_bn(model: nn.Module) -> nn.Module:
    """Return a copy whose batch norms have random scales and shifts, and statistics to fit.

    A cut of the wrong channel shows only where channels differ. Channels of a new model, or with a
    gamma of 0, do not.
    """
    randomized = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in randomized.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                module.momentum = 1.0  # one pass gives the statistics
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
        images = torch.rand(2, 3, TRACE_SIZE, TRACE_SIZE, generator=generator)
        randomized(images.to(next(randomized.parameters())))
    return randomized.eval()


def _mask(group: ChannelGroup, seed: int, chosen: bool) -> np.ndarray:
    """Return a mask without a quarter of the channels, or the whole one if not `chosen`.

    At least one of several channels goes.
    """
    keep = np.ones(group.size, dtype=bool)
    if chosen:
        number = min(max(round(SHARE * group.size), 1), group.size - 1)
        keep[np.random.default_rng([0, seed]).permutation(group.size)[:number]] = False
    return keep


def _failure(index: ChannelIndex, masks: Masks) -> str | None:
    """Return why a cut by these masks is wrong, or None."""
    try:
        difference = largest_difference(cut(index, masks), zero_channels(index, masks))
    except LIBRARY_ERRORS as error:
        return f"a cut copy does not run ({one_line(error)})"
    if difference <= TOLERANCE:
        return None
    if difference == math.inf:
        return "a cut copy gives outputs of other shapes, or values that are not finite"
    return (
        f"a cut copy differs from one with these channels at zero by {difference:.2g} of the"
        " largest output"
    )


def largest_passing(
    items: Sequence[Item], failure: Callable[[list[Item]], str | None]
) -> tuple[list[Item], list[tuple[Item, str]]]:
    """The items that pass together, and each of the others with its reason.

    `failure(items)` is None where they pass.

    Costs one call where all pass, and about 2 log2(n) for each that does not.
    """
    passing: list[Item] = []
    rejected: list[tuple[Item, str]] = []

    def add(part: list[Item]) -> None:
        reason = failure(passing + part)
        if reason is None:
            passing.extend(part)
        elif len(part) == 1:
            rejected.append((part[0], reason))
        else:
            add(part[: len(part) // 2])
            add(part[len(part) // 2 :])

    if items:
        add(list(items))
    return passing, rejected
