"""The criterion of PAGCP (Ye et al., TPAMI 2023, arXiv 2303.11923).

The search that uses the criterion is in search/pagcp.py.
"""

from prune_methods.criteria.base import PRUNERS, Array, Criterion


@PRUNERS.register("pagcp")
class Pagcp(Criterion):
    """Score by the sum of |w| of the filters that compute the channel.

    Scores are not normalised, since they only rank the channels within a unit (a group). How many
    channels of each unit are removed is the result of the search.
    """

    kinds = frozenset({"out", "depthwise"})
    search = True

    def score(self, slices: Array) -> Array:
        """Return the |w| sum of each channel over all its filters."""
        return slices.sum(0)
