"""Base classes and registries of the distillation losses.

A file in this folder that registers a loss adds the loss; see docs/custom_distillation_loss.md.

    FEATURE_LOSSES["cwd"](student_channels, teacher_channels)   one instance for each pair of layers
    LOGIT_LOSSES["ast"](LogitSetup.of(model.head, hyp))         one instance for all levels together

Either kind returns a scalar that does not grow with the batch. The task multiplies the scalar by
weight, batch size and world size, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utils.config import Hyp
from utils.losses import at_least_float32, level_balance
from utils.registry import Registry

FEATURE_LOSSES = Registry("feature distillation loss")
LOGIT_LOSSES = Registry("logit distillation loss")

NORM_EPS = 1e-5  # as nn.BatchNorm2d
FLAT = 1e-12  # a channel whose variance is not above this counts as constant


class FeatureLoss(nn.Module, ABC):
    """Base class of the losses that compare one pair of feature maps.

    Call: `loss(student (N, Cs, H, W), teacher (N, Ct, H, W))` -> scalar, the mean over the batch.

    In a training an adapter (`distill.adapters`) has brought both maps to the same channels. A loss
    that is called alone has `align` for that, a 1x1 convolution, made only where the numbers of
    channels differ. Half-precision maps are computed in float32, also under autocast. The
    teacher's map gets no gradient. Layers of a loss are trained beside the student and thrown away
    afterwards; those below a module with a true `trained_apart` by an optimizer of their own.
    """

    default_weight: ClassVar[float] = 0.03
    """Weight where `--feature-weight` gives none.

    Found by measurement where docs/results.md says so, else small beside the detection loss.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, norm: bool = False):
        """Make the adapter for a pair of layers.

        Args:
            student_channels: Channels of the student's map.
            teacher_channels: Channels of the teacher's map.
            norm: Standardise both maps with the statistics of their batch (see `standardised`), so
                that their scale does not matter.
        """
        super().__init__()
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.norm = norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of a pair of maps as a scalar; see the class for shapes."""
        assert student.shape[2:] == teacher.shape[2:], (
            f"maps of {(*student.shape[2:],)} and {(*teacher.shape[2:],)} cells"
        )
        with torch.autocast(student.device.type, enabled=False):
            s = self.align(at_least_float32(student))
            t = at_least_float32(teacher.detach())
            if self.norm:
                s, t = standardised(s), standardised(t)
            return self.compare(s, t)

    @abstractmethod
    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the distance of two maps as a scalar, the mean over the batch.

        Args:
            s: The student's map (N, C, H, W), float32 or float64, aligned and, with `norm`,
                standardised.
            t: The teacher's map, of the same shape and type.
        """


@dataclass(frozen=True, eq=False)
class LogitSetup:
    """Facts about the head that student and teacher have in common.

    Args:
        anchors: Anchor sizes (L, A, 2) in grid units, L levels of A anchors.
        nc: Number of classes.
        box: Effective gain of the box term, as in the detection loss (`hyp.scaled(...)`).
        obj: Effective gain of the objectness term.
        cls: Effective gain of the class term.
        balance: Weight of the objectness of each level, as in the detection loss.
    """

    anchors: Tensor
    nc: int
    box: float
    obj: float
    cls: float
    balance: tuple[float, ...]

    @classmethod
    def of(cls, head: Any, hyp: Hyp) -> "LogitSetup":
        """Read the setup from the student's head and the run's scaled hyper-parameters."""
        anchors = head.anchors.detach().float().clone()
        return cls(anchors, int(head.nc), hyp.box, hyp.obj, hyp.cls, level_balance(len(anchors)))


class LogitLoss(nn.Module, ABC):
    """Base class of the losses that compare the raw maps of two heads of one form.

    Call: `loss(student, teacher)` -> scalar; both are lists of (N, A, H, W, 5 + nc), the finest
    level first.

    Half-precision maps are computed in float32, also under autocast. The teacher's maps get no
    gradient.
    """

    anchors: Tensor

    def __init__(self, setup: LogitSetup):
        super().__init__()
        self.setup = setup
        # not persistent: checkpoints have the anchors in the head
        self.register_buffer("anchors", setup.anchors, persistent=False)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of two lists of raw maps as a scalar; see the class for shapes."""
        assert [s.shape for s in student] == [t.shape for t in teacher], (
            "heads of one form, maps of one batch"
        )
        with torch.autocast(student[0].device.type, enabled=False):
            return self.compare(
                [at_least_float32(s) for s in student],
                [at_least_float32(t.detach()) for t in teacher],
            )

    @abstractmethod
    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss weighted by the gains, as a mean over images or normalised likewise.

        Args:
            student: Raw maps (N, A, H, W, 5 + nc) by level, float32 or float64.
            teacher: Raw maps of the same shapes and types.
        """


def standardised(maps: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Return maps (N, C, H, W) with mean 0 and variance 1 of each channel over N, H and W.

    The computation is batch norm without scale, shift and running statistics. A channel that does
    not vary (a dead channel, or a single value) becomes 0 and gets no gradient.
    """
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) * (variance + eps).rsqrt().where(variance > FLAT, 0)
