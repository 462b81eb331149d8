"""PKD: train features to correlate with the teacher's (Cao et al., NeurIPS 2022).

The loss has no parameter to tune and works with teachers of any architecture.
"""

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FLAT, FeatureLoss, standardised


@FEATURE_LOSSES.register("pkd")
class Pearson(FeatureLoss):
    """Half the mean squared difference of maps that are standardised by channel over the batch.

    The value equals 1 - r, where r is the Pearson correlation of a channel's two maps; a mean over
    channels, 0..2. The paper divides by the unbiased deviation, as here, which makes the value (n -
    1) / n of 1 - r, with n = N H W.
    """

    default_weight = 0.3

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__(student_channels, teacher_channels)

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return (1 - r) (n - 1) / n, a mean over channels; see `FeatureLoss.compare`."""
        values = s.numel() // s.shape[1]
        return mse_loss(standardised(s, FLAT), standardised(t, FLAT)) / 2 * (values - 1) / values
