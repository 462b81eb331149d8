"""Layer-adaptive magnitude (LAMP, Lee et al., ICLR 2021, arXiv 2010.07611), on coupled groups."""

import numpy as np
from torch import Tensor

from prune_methods.criteria.base import PRUNERS, Array, Criterion, mean_over_layers


@PRUNERS.register("lamp")
class Lamp(Criterion):
    """Score by the energy of a channel over that of all channels of its group at least as strong.

    Equation 2, with the sum of w^2 of a slice in the place of a single weight. The strongest
    channel of a group always scores 1, so that a global ranking never empties a group.
    """

    def saliency(self, weight: Tensor) -> Tensor:
        """Return w^2."""
        return weight.square()

    def score(self, slices: Array) -> Array:
        """Return the LAMP score of each channel, in 0..1; all are 0 in a group of zeros."""
        energy = mean_over_layers(slices)
        ascending = np.argsort(energy, kind="stable")
        ordered = energy[ascending]
        # Sum over j >= i, added from the largest down: exact enough in float64.
        at_least = np.cumsum(ordered[::-1])[::-1]
        share = np.divide(ordered, at_least, out=np.zeros_like(ordered), where=at_least > 0)
        scores = np.empty_like(energy)
        scores[ascending] = share
        return scores
