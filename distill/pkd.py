"""PKD: features are to correlate with the teacher's (Cao et al., NeurIPS 2022).

Nothing to tune, and any teacher will do.
"""

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FLAT, FeatureLoss, standardised


@FEATURE_LOSSES.register("pkd")
class Pearson(FeatureLoss):
    """Half the mean squared difference of maps whose channels have mean 0 and standard deviation 1
    over the batch.

    That is 1 - r, r the Pearson correlation of a channel's two maps, mean over channels, 0..2. The
    paper divides by the unbiased deviation, which makes it (n - 1) / n of that, n = N H W.
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__(student_channels, teacher_channels)

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """See FeatureLoss."""
        values = s.numel() // s.shape[1]
        return mse_loss(standardised(s, FLAT), standardised(t, FLAT)) / 2 * (values - 1) / values
