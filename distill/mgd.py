"""Masked generative distillation (Yang et al., ECCV 2022).

Positions of the student's map are masked, and a small generator rebuilds the teacher's map from the
remaining ones.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FeatureLoss
from utils.errors import UserError, suggest

ALPHA = {"mean": 1.0, "paper": 2e-5}  # 2e-5 is the paper's value for one-stage detectors


class Generator(nn.Sequential):
    """Two 3x3 convolutions with a ReLU between them."""

    trained_apart = True

    def __init__(self, channels: int):
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )


@FEATURE_LOSSES.register("mgd")
class MaskedGenerative(FeatureLoss):
    """alpha * distance(G(mask * student), teacher).

    The generator G is trained along with the student, by AdamW whatever the weight of the loss, and
    thrown away afterwards.

    Args (beside those of FeatureLoss):
        form: `mean` for the mean squared difference, whose size does not depend on the map's; or
            `paper` for the sum of squares of an image, a mean over the batch. `paper` is C H W
            times as large and was made for RetinaNet's features.
        alpha: Factor of the loss, not negative; by default 1 (`mean`) or 2e-5 (`paper`).
        mask_ratio: Probability, 0..1, with which a position is dropped in all channels at once
            (lambda in the paper).

    Each call draws a new mask from torch's global generator. The trainer seeds that generator at
    each epoch, so that resuming a run is exact.
    """

    default_weight = 0.01

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        form: str = "mean",
        alpha: float | None = None,
        mask_ratio: float = 0.65,
        norm: bool = False,
    ):
        super().__init__(student_channels, teacher_channels, norm=norm)
        if form not in ALPHA:
            raise UserError(
                f"mgd: unknown form '{form}'{suggest(form, ALPHA)} (known: {', '.join(ALPHA)})"
            )
        if not (isinstance(mask_ratio, int | float) and 0 <= mask_ratio <= 1):
            raise UserError(f"mgd: mask_ratio {mask_ratio}: must be a number from 0 to 1")
        if not (alpha is None or (isinstance(alpha, int | float) and alpha >= 0)):
            raise UserError(f"mgd: alpha {alpha}: must be a number that is not negative")
        self.form, self.mask_ratio = form, mask_ratio
        self.alpha = ALPHA[form] if alpha is None else alpha
        self.generator = Generator(teacher_channels)

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return alpha times the distance of the rebuilt map; see `FeatureLoss.compare`."""
        rebuilt = self.generator(s * self.mask(s))
        if self.form == "mean":
            return self.alpha * mse_loss(rebuilt, t)
        return self.alpha * (mse_loss(rebuilt, t, reduction="sum") / len(t))

    def mask(self, maps: Tensor) -> Tensor:
        """Draw a mask (N, 1, H, W) for maps (N, C, H, W).

        Each position is 0 with probability `mask_ratio`, else 1.
        """
        return (torch.rand_like(maps[:, :1]) >= self.mask_ratio).to(maps)
