"""Proof of a cut, run after every one: MACs as predicted, outputs those of zeroed channels."""

from torch import nn

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.surgery.cut import TOLERANCE, largest_difference, zero_channels
from utils.errors import UserError
from utils.profiling import count_macs


def verify(
    index: ChannelIndex, masks: Masks, macs: int, smaller: nn.Module, imgsz: int = 640
) -> None:
    """Check a model that was cut.

    Args:
        index: the channels of the uncut model.
        masks: channels that were kept.
        macs: MACs that were predicted for the deployed model.
        smaller: the cut model.
        imgsz: pixels at which MACs count.

    Raises:
        UserError: where a block hid a coupling from the graph.
    """
    measured = deployed_macs(smaller, imgsz)
    assert measured == macs, f"predicted {macs} MACs, measured {measured}"
    difference = largest_difference(smaller, zero_channels(index, masks))
    if not difference <= TOLERANCE:
        raise UserError(
            f"pruning: the cut model differs from the one with zeroed channels by {difference:.2g}:"
            " a block uses its channels in a way that cannot be followed; leave it out with"
            " --ignore"
        )


def deployed_macs(model: nn.Module, imgsz: int = 640) -> int:
    """Measure the MACs of the deployed model, or of the model itself where it has no `fuse`."""
    fuse = getattr(model, "fuse", None)
    return count_macs(fuse() if fuse else model, imgsz)
