"""Layer-adaptive magnitude (LAMP, Lee et al., ICLR 2021, arXiv 2010.07611), on coupled groups."""

import numpy as np
from torch import Tensor

from prune_methods.criteria.base import PRUNERS, Array, Criterion, mean_over_layers


@PRUNERS.register("lamp")
class Lamp(Criterion):
    """A channel's share of the energy of all channels of its group that are at least as strong
    (equation 2, with w^2 of a slice).

    The strongest channel of a group always scores 1, so that no group is emptied by a global
    ranking.
    """

    def saliency(self, weight: Tensor) -> Tensor:
        """w^2."""
        return weight.square()

    def score(self, slices: Array) -> Array:
        """See Criterion; a group that is all zero scores 0."""
        energy = mean_over_layers(slices)
        ascending = np.argsort(energy, kind="stable")
        ordered = energy[ascending]
        at_least = np.cumsum(ordered[::-1])[
            ::-1
        ]  # sum over j >= i, added from the large end: exact enough in float64
        scores = np.empty_like(energy)
        scores[ascending] = np.divide(
            ordered, at_least, out=np.zeros_like(ordered), where=at_least > 0
        )
        return scores
