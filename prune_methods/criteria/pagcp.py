"""The criterion of PAGCP (Ye et al., TPAMI 2023, arXiv 2303.11923).

The search that uses the criterion is in search/pagcp.py.
"""

from torch import Tensor

from prune_methods.criteria.base import PRUNERS, Array, Criterion


@PRUNERS.register("pagcp")
class Pagcp(Criterion):
    """Score by the mean |w| of each filter that computes the channel, summed over the filters.

    The mean, as in the authors' code, lets coupled layers count alike however many inputs they
    have; it is over the weights of the uncut filter. Scores are not normalised, since they only
    rank the channels within a unit (a group). How many channels of each unit are removed is the
    result of the search.
    """

    kinds = frozenset({"out", "depthwise"})
    search = True

    def saliency(self, weight: Tensor) -> Tensor:
        """Return |w| over the number of weights of a filter."""
        return weight.abs() / weight[0].numel()

    def score(self, slices: Array) -> Array:
        """Return the sum over all filters of a channel."""
        return slices.sum(0)
