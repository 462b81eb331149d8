"""Network Slimming (Liu et al., ICCV 2017, arXiv 1708.06519): a channel is worth the scale of its
batch norm.
"""

from prune_methods.criteria.base import PRUNERS, Array, Criterion, mean_over_layers


@PRUNERS.register("slim")
class Slim(Criterion):
    """|gamma|, mean over the coupled batch norms, and no more.

    Not divided by the layer's mean: sparse training empties whole layers where they are not needed,
    and dividing would hide it. A group without a batch norm cannot be scored: `countable` lists it
    as skipped.
    """

    kinds = frozenset({"norm"})
    sparse = True

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return mean_over_layers(slices)


@PRUNERS.register("group_slim")
class GroupSlim(Slim):
    """The score of `slim`; what makes it another method is the group lasso over coupled norms in
    its sparse training.
    """
