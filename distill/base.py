"""What a distillation loss is; a file in this folder that registers one adds it.

See docs/custom_distillation_loss.md.

    FEATURE_LOSSES["cwd"](student_channels, teacher_channels)   one instance for each pair of layers
    LOGIT_LOSSES["ast"](LogitSetup.of(model.head, hyp))         one for all levels together

Both give a scalar that does not grow with the batch: the task multiplies by weight, batch size and
world size, once.
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

NORM_EPS = 1e-5  # that of nn.BatchNorm2d
FLAT = 1e-12  # a channel of less variance says nothing


class FeatureLoss(nn.Module, ABC):
    """Compares one pair of feature maps: `loss(student (N, Cs, H, W), teacher (N, Ct, H, W)) ->
    scalar`, mean over the batch.

    It owns what is trained beside the model and thrown away with it: here `align`, a 1x1
    convolution that gives the student's map the teacher's channels, made only where they differ.
    Half-precision maps are computed in float32, also under autocast. No gradient reaches the
    teacher's map.
    """

    default_weight: ClassVar[float] = 0.03
    """Where `--feature-weight` says nothing: about a third of the whole loss at the start of a run,
    see docs/distillation.md.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, norm: bool = False):
        """norm: standardise both maps with the statistics of their batch (see `standardised`), so
        that scale does not matter.
        """
        super().__init__()
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.norm = norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See the class."""
        assert student.shape[2:] == teacher.shape[2:], (
            f"maps of {(*student.shape[2:],)} and {(*teacher.shape[2:],)} cells"
        )
        with torch.autocast(student.device.type, enabled=False):
            s, t = self.align(at_least_float32(student)), at_least_float32(teacher.detach())
            return (
                self.compare(standardised(s), standardised(t)) if self.norm else self.compare(s, t)
            )

    @abstractmethod
    def compare(self, s: Tensor, t: Tensor) -> Tensor:
        """Two maps (N, C, H, W), float32 or float64, aligned and, with `norm`, standardised ->
        scalar, mean over the batch.
        """


@dataclass(frozen=True, eq=False)
class LogitSetup:
    """What a logit loss knows of the head that student and teacher have in common.

    anchors: (L, A, 2) in grid units; nc: classes. As in the detection loss: box, obj, cls, the
    effective gains (`hyp.scaled(...)`), and balance, the weight of each level's objectness.
    """

    anchors: Tensor
    nc: int
    box: float
    obj: float
    cls: float
    balance: tuple[float, ...]

    @classmethod
    def of(cls, head: Any, hyp: Hyp) -> "LogitSetup":
        """From the detection head of the student and the run's scaled hyper-parameters."""
        anchors = head.anchors.detach().float().clone()
        return cls(anchors, int(head.nc), hyp.box, hyp.obj, hyp.cls, level_balance(len(anchors)))


class LogitLoss(nn.Module, ABC):
    """Compares the raw maps of two heads of the same form: two lists of (N, A, H, W, 5 + nc),
    finest level first -> scalar.

    Half-precision maps are computed in float32, also under autocast. No gradient reaches the
    teacher's maps.
    """

    anchors: Tensor

    def __init__(self, setup: LogitSetup):
        super().__init__()
        self.setup = setup
        self.register_buffer(
            "anchors", setup.anchors, persistent=False
        )  # in no checkpoint: the head has them

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """See the class."""
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
        """The same maps, float32 or float64 -> scalar: weighted by the gains, a mean over images or
        normalised likewise.
        """


def standardised(maps: Tensor, eps: float = NORM_EPS) -> Tensor:
    """(N, C, H, W) with mean 0 and variance 1 for each channel over N, H and W: batch norm without
    scale, shift and memory.

    A channel that does not vary (a dead one, or a single value) becomes 0 and gets no gradient.
    """
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) * (variance + eps).rsqrt().where(variance > FLAT, 0)
