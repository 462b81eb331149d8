"""Magnitude of the weights of a channel in all layers of its group.

After DepGraph (Fang et al., CVPR 2023, arXiv 2301.12900).
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
    """Score by the sum of |w| of a slice, as a mean over the coupled layers (Li et al., ICLR 2017).

    Scores are relative to the mean of the group. Otherwise a global ranking would remove most of
    the narrow early layers, whose filters have few weights.
    """

    def score(self, slices: Array) -> Array:
        """Return the mean |w| sum of each channel over the mean of the group."""
        return relative_to_mean(mean_over_layers(slices))


@PRUNERS.register("group_norm")
class GroupNorm(Criterion):
    """Score by the sum of w^2 of a slice, as a mean over the coupled layers (DepGraph, equation 4).

    Scores are relative to the mean of the group.
    """

    def saliency(self, weight: Tensor) -> Tensor:
        """Return w^2."""
        return weight.square()

    def score(self, slices: Array) -> Array:
        """Return the mean energy of each channel over the mean of the group."""
        return relative_to_mean(mean_over_layers(slices))


@PRUNERS.register("group_sl")
class GroupSparseLearning(GroupNorm):
    """Score by the energy relative to the strongest channel of the group (DepGraph, section 3.3).

    Presumes DepGraph's group sparsity: sparse training that leaves weak and strong channels in each
    group. Where few channels of a group are strong, all others score near 0, however wide the group
    is. Scores of `group_norm`, relative to the mean, would instead rise with the number of weak
    channels.
    """

    sparse = True

    def score(self, slices: Array) -> Array:
        """Return the mean energy of each channel over the largest of the group."""
        return relative_to_largest(mean_over_layers(slices))


@PRUNERS.register("group_reg")
class GroupGrowingReg(GroupNorm):
    """Score as `group_norm`, after sparse training with a penalty that grows.

    Wang et al., Neural Pruning via Growing Regularization (ICLR 2021, arXiv 2012.09243), applied to
    groups. The penalty is in sparsity/penalties.py.
    """

    sparse = True
