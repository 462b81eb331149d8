"""Masked generative distillation (Yang et al., ECCV 2022): from what is left of its map the student
makes up the teacher's.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from distill.base import FEATURE_LOSSES, FeatureLoss
from utils.errors import UserError, suggest

ALPHA = {"mean": 1.0, "paper": 2e-5}  # 2e-5: the paper's for one-stage detectors


@FEATURE_LOSSES.register("mgd")
class MaskedGenerative(FeatureLoss):
    """alpha * distance(G(mask * student), teacher), G two 3x3 convolutions that are trained along
    and thrown away.

    form: `mean`, the mean squared difference, whose size does not depend on the map's; or `paper`,
    an image's sum of squares, mean over the batch: C H W times as much, made for RetinaNet's
    features. alpha: factor, by default 1 (mean) or 2e-5 (paper). mask_ratio: the paper's lambda,
    0..1, with which a position is dropped in all channels at once.

    Masks are drawn anew at each call from torch's global generator, which the trainer seeds at each
    epoch: resuming is exact.
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
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """See FeatureLoss."""
        made = self.generator(s * self.mask(s))
        distance = (
            mse_loss(made, t)
            if self.form == "mean"
            else mse_loss(made, t, reduction="sum") / len(t)
        )
        return self.alpha * distance

    def mask(self, maps: Tensor) -> Tensor:
        """A fresh mask (N, 1, H, W) for maps (N, C, H, W): 0 with probability
        `mask_ratio`, else 1.
        """
        return (torch.rand_like(maps[:, :1]) >= self.mask_ratio).to(maps)
