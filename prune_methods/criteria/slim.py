"""Network Slimming: score a channel by the scale of its batch norm.

Liu et al., ICCV 2017, arXiv 1708.06519.
"""

from prune_methods.criteria.base import PRUNERS, Array, Criterion, mean_over_layers


@PRUNERS.register("slim")
class Slim(Criterion):
    """Score by |gamma|, as a mean over the coupled batch norms.

    Scores are not divided by the mean of the group: sparse training empties whole layers that are
    not needed, and the division would hide this. A group without a batch norm cannot be scored;
    `countable` lists its layers as skipped.
    """

    kinds = frozenset({"norm"})
    sparse = True

    def score(self, slices: Array) -> Array:
        """Return the mean |gamma| of each channel."""
        return mean_over_layers(slices)


@PRUNERS.register("group_slim")
class GroupSlim(Slim):
    """Score as `slim`, after sparse training with a group lasso over coupled batch norms."""
