"""Mimic: train the student's features to equal the teacher's.

Papers: Romero et al., "FitNets", ICLR 2015; Li et al., "Mimicking Very Efficient Network for Object
Detection", CVPR 2017.
"""

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FeatureLoss


@FEATURE_LOSSES.register("mimic")
class Mimic(FeatureLoss):
    """Mean squared difference of the maps, a mean over batch, channels and cells.

    With `norm` the value lies in 0..4, and is 2 for maps that do not correlate.
    """

    default_weight = 0.01

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared difference; see `FeatureLoss.compare`."""
        return mse_loss(s, t)
