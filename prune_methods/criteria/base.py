"""What a pruning method is: one score for every channel of a coupled group, and nothing else.

A method drops one file into this folder and registers its class; see docs/custom_pruner.md.
"""

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from utils.errors import UserError
from utils.registry import Registry

PRUNERS = Registry("pruning method")

Array = np.ndarray


class Criterion(ABC):
    """How much a channel is worth.

    A *slice* is all weights of one layer that belong to one channel: an output channel's filter, an
    input channel's column, a batch norm's gamma. The engine sums `saliency` over every slice, over
    the channels that are still there, and `score` turns these sums into the channel's worth. So any
    method costs one masked matrix-vector product a layer and step.
    """

    kinds: frozenset[str] = frozenset({"out", "in", "depthwise", "norm"})
    """The coupled layers that count: outputs, inputs, depthwise convolutions, norms."""
    sparse: bool = False
    """Whether the scores presume weights that `train_sparse.py --method <name>` has driven towards
    zero.
    """
    search: bool = False
    """Whether the scores only rank within a group, and a search on the losses says how many go
    (pagcp_search.py).
    """

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)  # for methods that draw

    def saliency(self, weight: Tensor) -> Tensor:
        """What each weight adds to its slice: any shape -> the same shape, not negative.

        The magnitude by default.
        """
        return weight.abs()

    @abstractmethod
    def score(self, slices: Array) -> Array:
        """Sums of saliency, float64 (coupled layers, channels) -> finite float64 (channels,).

        The lowest goes first.

        The ranking is over all groups together unless it is asked for layer by layer, so scores
        must compare across groups.
        """


class GradientCriterion(Criterion):
    """A method that needs the gradient of the loss: what a weight adds to its slice is the mean of
    `contribution` over passes.

    The engine makes the passes (gradients.py) over batches of training images, or over single
    images with `per_image`.
    """

    per_image: bool = False

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What each weight adds in one backward pass: two float64 tensors of a shape -> the same
        shape, not negative.
        """

    def score(self, slices: Array) -> Array:
        """Mean over the coupled layers; see Criterion.

        In units of the loss, which compare across groups as they are.
        """
        return mean_over_layers(slices)

    def saliency(self, weight: Tensor) -> Tensor:
        """Not to be had from the weight alone."""
        raise UserError(
            f"{type(self).__name__}: needs gradients; hand `measure` to keep_masks or `evidence` to"
            " scores"
        )


def mean_over_layers(slices: Array) -> Array:
    """(coupled layers, channels) -> (channels,)."""
    return slices.mean(0)


def relative_to_mean(values: Array) -> Array:
    """Divide by the mean over the channels, so that wide and narrow layers compare; all zero stays
    zero.
    """
    mean = values.mean()
    return values / mean if mean > 0 else values


def relative_to_largest(values: Array) -> Array:
    """Divide by the largest, so that every group has a 1; all zero stays zero."""
    largest = values.max()
    return values / largest if largest > 0 else values
