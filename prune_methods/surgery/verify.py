"""Proof of a cut, run after every one: it costs what was predicted and computes what the zeroed
model computes.
"""

from collections.abc import Sequence

from torch import nn

from prune_methods.groups.graph import ChannelGroup
from prune_methods.search.cost import deployed_macs
from prune_methods.search.loop import Plan
from prune_methods.surgery.cut import TOLERANCE, largest_difference, zeroed
from utils.errors import UserError


def verify(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    plan: Plan,
    smaller: nn.Module,
    imgsz: int = 640,
) -> None:
    """Check `smaller`, cut from `model` by `plan`.

    `UserError` where a block hid a coupling from the graph.
    """
    measured = deployed_macs(smaller, imgsz)
    assert measured == plan.macs, f"predicted {plan.macs} MACs, measured {measured}"
    difference = largest_difference(smaller, zeroed(model, groups, plan.masks))
    if not difference <= TOLERANCE:
        raise UserError(
            f"pruning: the cut model differs from the one with zeroed channels by {difference:.2g}:"
            " a block uses its channels in a way that cannot be followed; leave it out with"
            " --ignore"
        )
