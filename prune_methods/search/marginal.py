"""What the removal of each channel alone would free: MACs, bytes of activations, or time.

A score divided by this is the loss per unit of cost, which protects channels that are cheap to keep
and takes costly ones first (Liu et al., Group Fisher Pruning, ICML 2021; Shen et al., HALP, NeurIPS
2022).
"""

from dataclasses import dataclass

import numpy as np

from prune_methods.search.cost import Cost
from prune_methods.search.latency import TimeModel
from prune_methods.search.plan import FreedBy

BYTES = 4  # of a float32 activation


@dataclass(frozen=True)
class MarginalCost:
    """Cost that is bilinear in the widths of each layer: outs, ins and outs times ins.

    Attributes:
        cost: the layers of the model.
        per_out, per_in, per_pair: float (layers,), in any one unit, in the order of `cost.layers`.
    """

    cost: Cost
    per_out: np.ndarray
    per_in: np.ndarray
    per_pair: np.ndarray

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        """Return what each flat channel frees with this flat mask, float (total,).

        Inputs and outputs of all layers count together. The value of a channel that is gone already
        has no meaning.
        """
        outs, ins = self.cost.outs, self.cost.ins
        reader = self.per_out + self.per_pair * ins(keep)
        source = self.per_in + self.per_pair * outs(keep)
        total = self.cost.index.total
        freed = outs.spread(reader, total) + ins.spread(source, total)
        layer, channel, times = self.cost.both_sides
        return freed - np.bincount(channel, self.per_pair[layer] * times, total)


def marginal_macs(cost: Cost) -> MarginalCost:
    """Return the MACs that each channel frees."""
    nothing = np.zeros(len(cost.unit))
    return MarginalCost(cost, nothing, nothing, cost.unit)


def marginal_bytes(cost: Cost) -> MarginalCost:
    """Return the bytes of feature maps that each channel frees, of one float32 image."""
    nothing = np.zeros(len(cost.unit))
    return MarginalCost(cost, BYTES * cost.pixels, nothing, nothing)


def marginal_both(cost: Cost) -> FreedBy:
    """Return the geometric mean of the MACs and the bytes that each channel frees.

    A layer takes time for multiplying and time for moving its maps; the mean needs no constant of a
    machine.
    """
    macs, size = marginal_macs(cost), marginal_bytes(cost)
    return lambda keep: np.sqrt(macs(keep).clip(0) * size(keep).clip(0))


def marginal_time(times: TimeModel) -> MarginalCost:
    """Return the time that each channel frees, by a fitted model."""
    outs, ins = times.full
    _, by_out, by_in, by_pair = times.terms
    return MarginalCost(times.cost, by_out / outs, by_in / ins, by_pair / (outs * ins))
