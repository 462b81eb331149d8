"""Proof of a cut, run after every one: its MACs as predicted, its outputs those of
zeroed channels.
"""

from torch import nn

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import deployed_macs
from prune_methods.search.plan import Plan
from prune_methods.surgery.cut import TOLERANCE, largest_difference, zero_channels
from utils.errors import UserError


def verify(index: ChannelIndex, plan: Plan, smaller: nn.Module, imgsz: int = 640) -> None:
    """Check `smaller`, cut from the model of `index` by `plan`.

    Args:
        index: the channels of the uncut model.
        plan: the masks, and the MACs that they were predicted to leave.
        smaller: the cut model.
        imgsz: pixels at which MACs count.

    Raises:
        UserError: where a block hid a coupling from the graph.
    """
    measured = deployed_macs(smaller, imgsz)
    assert measured == plan.macs, f"predicted {plan.macs} MACs, measured {measured}"
    difference = largest_difference(smaller, zero_channels(index, plan.masks))
    if not difference <= TOLERANCE:
        raise UserError(
            f"pruning: the cut model differs from the one with zeroed channels by {difference:.2g}:"
            " a block uses its channels in a way that cannot be followed; leave it out with"
            " --ignore"
        )
