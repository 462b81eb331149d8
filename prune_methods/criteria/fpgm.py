"""Filter pruning by geometric median (FPGM, He et al., CVPR 2019, arXiv 1811.00250), on groups."""

from collections.abc import Sequence

import numpy as np

from prune_methods.criteria.base import PRUNERS, Array, GroupCriterion, relative_to_mean
from prune_methods.groups.graph import ChannelGroup


@PRUNERS.register("fpgm")
class Fpgm(GroupCriterion):
    """Score a channel by the sum of distances of its filter to all other filters (equation 4).

    A filter near the geometric median of its layer can be replaced by the others, however large
    its weights are. Taken as the mean over the coupled layers that make the channel, relative to
    the mean of the group, so that groups of any width compare.
    """

    def score_group(self, group: ChannelGroup, weights: Sequence[Array], keep: Array) -> Array:
        """See GroupCriterion."""
        sums = [distances(slices[keep]).sum(1) for slices in weights]
        return relative_to_mean(np.mean(sums, axis=0))


def distances(points: Array) -> Array:
    """Return the Euclidean distance of every point to every other: (n, d) -> (n, n)."""
    squares = np.square(points).sum(1)
    products = np.einsum("id,jd->ij", points, points)
    found = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))
    np.fill_diagonal(found, 0)
    return found
