"""Magnitude of a channel's weights over all layers that it couples (DepGraph, Fang et al., CVPR 2023, arXiv 2301.12900)."""

from torch import Tensor

from prune_methods.base import PRUNERS, Array, Criterion, mean_over_layers, relative_to_mean


@PRUNERS.register("l1")
class GroupL1(Criterion):
    """Sum of |w| of a slice, mean over the coupled layers, relative to the group's mean (Li et al., ICLR 2017, on groups).

    Without the last step narrow early layers, whose filters are small, would be shredded by a global ranking.
    """

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return relative_to_mean(mean_over_layers(slices))


@PRUNERS.register("group_norm")
class GroupNorm(Criterion):
    """Sum of w^2 of a slice, mean over the coupled layers, relative to the group's mean (DepGraph, equation 4)."""

    def saliency(self, weight: Tensor) -> Tensor:
        """w^2."""
        return weight.square()

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return relative_to_mean(mean_over_layers(slices))
