"""The contract of a pruning method: one score for every channel of a coupled group.

A method drops one file into this folder and registers its class; see docs/custom_pruner.md. Five
base classes, from the quickest:

| base | looks at | to write |
|---|---|---|
| `Criterion` | each weight by itself | `score`, and `saliency` where not the magnitude |
| `GradientCriterion` | weights and their gradients | `contribution` |
| `GateCriterion` | the gradient to a gate on each channel | `contribution`, where not the square |
| `ActivationCriterion` | outputs of layers on training images | `collect` |
| `GroupCriterion` | whole slices, e.g. distances between filters | `score_group` |
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prune_methods.groups.graph import ChannelGroup
from utils.errors import UserError
from utils.registry import Registry

PRUNERS = Registry("pruning method")

Array = np.ndarray


class Criterion(ABC):
    """Score channels by sums over their slices.

    A *slice* is all weights of one layer that belong to one channel: the filter of an output
    channel, the column of an input channel, the gamma of a batch norm. The engine sums `saliency`
    over every slice, leaving out channels that are gone, and `score` turns the sums into the worth
    of each channel. Any method so costs one masked matrix-vector product a layer and step.
    """

    kinds: frozenset[str] = frozenset({"out", "in", "depthwise", "norm"})
    """Kinds of coupled layers that count: outputs, inputs, depthwise convolutions, norms."""
    sparse: bool = False
    """Whether scores presume weights that `train_sparse.py --method <name>` drove towards zero."""
    loss_units: bool = False
    """Whether scores are in units of the loss, so that a score per cost compares across groups."""
    search: bool = False
    """Whether scores rank within a group only, and a search on losses decides how many go (PAGCP).
    """

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)  # for methods that draw

    def saliency(self, weight: Tensor) -> Tensor:
        """Return the share of each weight in its slice: any shape -> same shape, not negative.

        The magnitude by default. Taken once; scores of a masked model are sums of these values.
        """
        return weight.abs()

    @abstractmethod
    def score(self, slices: Array) -> Array:
        """Turn sums of saliency, float64 (coupled layers, channels), into scores (channels,).

        Scores are finite float64, the lowest goes first. Scores must compare across groups, since
        the ranking is over all groups together unless a user asks for one within each layer.
        """


class GradientCriterion(Criterion):
    """Score channels by gradients of the loss: saliency is the mean of `contribution` over passes.

    The engine makes the passes (gradients.py) over batches of training images, or over single
    images with `per_image`.
    """

    per_image: bool = False
    loss_units = True

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the share of each weight in one backward pass.

        Two float64 tensors of a shape -> the same shape, not negative.
        """

    def score(self, slices: Array) -> Array:
        """Take the mean over the coupled layers; units of the loss compare across groups."""
        return mean_over_layers(slices)

    def saliency(self, weight: Tensor) -> Tensor:
        """Refuse: a weight alone has no gradient."""
        raise UserError(
            f"{type(self).__name__}: needs gradients; hand a `source` to Prunable.search or "
            "`evidence` to Prunable.scores"
        )


class GateCriterion(Criterion):
    """Score channels by the gradient of the loss of an image to a gate on each channel.

    The gate, a factor of 1, stands where the channel is read: its gradient is the sum of w * g
    over the columns of all readers. Signs cancel within a channel, as they do when the channel
    goes. The engine takes the mean of `contribution` over images.
    """

    kinds = frozenset({"in"})
    loss_units = True

    def contribution(self, gradient: Array) -> Array:
        """Return the share of one image: gradients (channels,) -> not negative (channels,)."""
        return np.square(gradient)

    def score(self, slices: Array) -> Array:
        """Take the mean over images as it is; units of the loss compare across groups."""
        return slices[0]

    def saliency(self, weight: Tensor) -> Tensor:
        """Refuse: a weight alone has no gradient."""
        raise UserError(
            f"{type(self).__name__}: needs gradients; hand a `source` to Prunable.search or "
            "`evidence` to Prunable.scores"
        )


@dataclass(frozen=True)
class CalibrationBatch:
    """A batch of training images, and the outputs of the layers that a criterion counts.

    Attributes:
        images: float (N, 3, H, W) in 0..1.
        outputs: layer name -> (N, C, H, W), in eval mode, of the model as masked now. The output
            of a batch norm comes before the activation.
    """

    images: Tensor
    outputs: Mapping[str, Tensor]


class ActivationCriterion(Criterion):
    """Score channels by the outputs of layers: saliency is the mean of `collect` over the images.

    `kinds` should name layers whose outputs are the channels: `norm`, `out` or `depthwise`.
    """

    kinds = frozenset({"norm"})

    @abstractmethod
    def collect(self, batch: CalibrationBatch) -> Mapping[str, Tensor]:
        """Return the saliency of every channel of each layer in `batch.outputs`.

        The value of a layer is (C,), not negative, a mean over the images of the batch.
        """

    def score(self, slices: Array) -> Array:
        """Take the mean over the coupled layers, relative to the mean of the group."""
        return relative_to_mean(mean_over_layers(slices))

    def saliency(self, weight: Tensor) -> Tensor:
        """Refuse: a weight alone has no output."""
        raise UserError(
            f"{type(self).__name__}: needs outputs on images; hand a `source` to Prunable.search "
            "or `evidence` to Prunable.scores"
        )


class GroupCriterion(Criterion):
    """Score channels by whole slices, where sums of a saliency do not do, as for distances.

    Slower than a `Criterion`: the slices of each group are gathered anew at every step.
    """

    kinds = frozenset({"out", "depthwise"})

    @abstractmethod
    def score_group(self, group: ChannelGroup, weights: Sequence[Array], keep: Array) -> Array:
        """Return the scores of the channels that are still there.

        Args:
            group: the coupled channels.
            weights: of each coupled layer that counts, float64 (group.size, values): the slice of
                every channel, flattened. Values that belong to removed channels are 0.
            keep: bool (group.size,), False for channels that are gone.

        Returns:
            Finite float64 (keep.sum(),), in the order of the channels; the lowest goes first.
        """

    def score(self, slices: Array) -> Array:
        """Refuse: sums over slices are not enough."""
        raise AssertionError("a GroupCriterion is scored by score_group")


def mean_over_layers(slices: Array) -> Array:
    """Take the mean over the coupled layers: (layers, channels) -> (channels,)."""
    return slices.mean(0)


def relative_to_mean(values: Array) -> Array:
    """Divide by the mean over the channels, so that groups of any width compare; keep all zeros."""
    mean = values.mean()
    return values / mean if mean > 0 else values


def relative_to_largest(values: Array) -> Array:
    """Divide by the largest, so that every group has a 1; keep all zeros."""
    largest = values.max()
    return values / largest if largest > 0 else values
