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

    Maps are standardised first unless `norm` is false: the value then lies in 0..4, is 2 for maps
    that do not correlate, and is twice that of `pkd`.
    """

    default_weight = 0.15

    def __init__(self, student_channels: int, teacher_channels: int, *, norm: bool = True):
        super().__init__(student_channels, teacher_channels, norm=norm)

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared difference; see `FeatureLoss.compare`."""
        return mse_loss(s, t)
