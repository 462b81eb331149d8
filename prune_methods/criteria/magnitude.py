"""Magnitude of a channel's weights over all layers that it couples (DepGraph, Fang et al., CVPR
2023, arXiv 2301.12900).
"""

from torch import Tensor

from prune_methods.criteria.base import (
    PRUNERS,
    Array,
    Criterion,
    mean_over_layers,
    relative_to_largest,
    relative_to_mean,
)


@PRUNERS.register("l1")
class GroupL1(Criterion):
    """Sum of |w| of a slice, mean over the coupled layers, relative to the group's mean (Li et al.,
    ICLR 2017, on groups).

    Without the last step narrow early layers, whose filters are small, would be shredded by a
    global ranking.
    """

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return relative_to_mean(mean_over_layers(slices))


@PRUNERS.register("group_norm")
class GroupNorm(Criterion):
    """Sum of w^2 of a slice, mean over the coupled layers, relative to the group's mean (DepGraph,
    equation 4).
    """

    def saliency(self, weight: Tensor) -> Tensor:
        """w^2."""
        return weight.square()

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return relative_to_mean(mean_over_layers(slices))


@PRUNERS.register("group_sl")
class GroupSparseLearning(GroupNorm):
    """Energy relative to the group's largest channel, after sparse training that has left each
    group weak and strong ones.

    Against `group_norm`: where few channels of a group are strong all others are near 0, however
    wide the group; relative to the mean they would seem the stronger, the more of them there are.
    (DepGraph, section 3.3, with its group sparsity.)
    """

    sparse = True

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return relative_to_largest(mean_over_layers(slices))


@PRUNERS.register("group_reg")
class GroupGrowingReg(GroupNorm):
    """The score of `group_norm`; what makes it another method is the growing penalty of its sparse
    training.

    (Wang et al., Neural Pruning via Growing Regularization, ICLR 2021, arXiv 2012.09243, on
    groups.)
    """

    sparse = True
