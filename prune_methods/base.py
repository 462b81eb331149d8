"""What a pruning method is: one score for every channel of a coupled group, and nothing else.

A method drops one file into this folder and registers its class; see docs/custom_pruner.md.
"""

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from utils.registry import Registry

PRUNERS = Registry("pruning method")

Array = np.ndarray


class Criterion(ABC):
    """How much a channel is worth.

    A *slice* is all weights of one layer that belong to one channel: an output channel's filter, an input channel's column, a
    batch norm's gamma. The engine sums `saliency` over every slice, over the channels that are still there, and `score` turns
    these sums into the channel's worth. So any method costs one masked matrix-vector product a layer and step.
    """

    kinds: frozenset[str] = frozenset({"out", "in", "depthwise", "norm"})
    """The coupled layers that count: outputs, inputs, depthwise convolutions, norms."""

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)  # for methods that draw

    def saliency(self, weight: Tensor) -> Tensor:
        """What each weight adds to its slice: any shape -> the same shape, not negative. The magnitude by default."""
        return weight.abs()

    @abstractmethod
    def score(self, slices: Array) -> Array:
        """Sums of saliency, float64 (coupled layers, channels) -> finite float64 (channels,). The lowest goes first.

        The ranking is over all groups together unless it is asked for layer by layer, so scores must compare across groups.
        """


def mean_over_layers(slices: Array) -> Array:
    """(coupled layers, channels) -> (channels,)."""
    return slices.mean(0)


def relative_to_mean(values: Array) -> Array:
    """Divide by the mean over the channels, so that wide and narrow layers compare; all zero stays zero."""
    mean = values.mean()
    return values / mean if mean > 0 else values
