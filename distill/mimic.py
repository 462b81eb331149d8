"""Mimic: the student's features are to be the teacher's (FitNets, Romero et al., ICLR 2015; Li et
al., CVPR 2017).
"""

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FeatureLoss


@FEATURE_LOSSES.register("mimic")
class Mimic(FeatureLoss):
    """Mean squared difference, a mean over channels and cells too.

    With `norm` 0..4, and 2 for maps that do not correlate.
    """

    default_weight = 0.01

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """See FeatureLoss."""
        return mse_loss(s, t)
