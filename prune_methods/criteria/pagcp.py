"""The criterion of PAGCP (Ye et al., TPAMI 2023, arXiv 2303.11923); the search that uses it is
`search/pagcp.py`.
"""

from prune_methods.criteria.base import PRUNERS, Array, Criterion


@PRUNERS.register("pagcp")
class Pagcp(Criterion):
    """Sum of |w| of the filters that make the channel, raw: it ranks within a unit only, how many
    go is searched for.
    """

    kinds = frozenset({"out", "depthwise"})
    search = True

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return slices.sum(0)
