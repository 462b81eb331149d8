"""Channel-wise distillation (Shu et al., ICCV 2021, equations 2 to 4).

The loss compares where in the image a channel responds, not how strongly.
"""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.base import FEATURE_LOSSES, FeatureLoss
from utils.errors import UserError


@FEATURE_LOSSES.register("cwd")
class ChannelWise(FeatureLoss):
    """T^2 / C * sum over channels of KL(teacher || student), a mean over the batch.

    Each channel is a distribution over the cells: softmax(map / T). Maps are standardised first
    unless `norm` is false: otherwise a student that inflates its features comes closer to a
    teacher's peak.

    Args (beside those of FeatureLoss):
        temperature: T > 0. The larger T is, the more the cells beside the peak count; for large T
            the loss tends to half the variance of the difference of the two maps.
    """

    default_weight = 0.1

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        temperature: float = 1.0,
        norm: bool = True,
    ):
        super().__init__(student_channels, teacher_channels, norm=norm)
        if not (isinstance(temperature, int | float) and temperature > 0):
            raise UserError(f"cwd: temperature {temperature}: must be a number above 0")
        self.temperature = temperature

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the divergence of the channels' distributions; see `FeatureLoss.compare`."""
        log_s, log_t = (log_softmax(maps.flatten(2) / self.temperature, 2) for maps in (s, t))
        distributions = s.shape[0] * s.shape[1]
        divergence = kl_div(log_s, log_t, reduction="sum", log_target=True)
        return divergence * self.temperature**2 / distributions
