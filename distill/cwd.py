"""Channel-wise distillation (Shu et al., ICCV 2021, eq. 2 to 4): where in the image a channel
looks, not how strongly.
"""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.base import FEATURE_LOSSES, FeatureLoss
from utils.errors import UserError


@FEATURE_LOSSES.register("cwd")
class ChannelWise(FeatureLoss):
    """T^2 / C * sum over channels of KL(teacher || student), each channel a distribution over the
    cells: softmax(map / T).

    temperature: T > 0; the larger, the more the cells beside the peak count. The limit is half the
    variance of the difference.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        temperature: float = 1.0,
        norm: bool = False,
    ):
        super().__init__(student_channels, teacher_channels, norm=norm)
        if not (isinstance(temperature, int | float) and temperature > 0):
            raise UserError(f"cwd: temperature {temperature}: must be a number above 0")
        self.temperature = temperature

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """See FeatureLoss."""
        log_s, log_t = (log_softmax(maps.flatten(2) / self.temperature, 2) for maps in (s, t))
        distributions = s.shape[0] * s.shape[1]
        return (
            kl_div(log_s, log_t, reduction="sum", log_target=True)
            * self.temperature**2
            / distributions
        )
