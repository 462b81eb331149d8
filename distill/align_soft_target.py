"""AlignSoftTarget: use the teacher's scores as soft targets of the student's own sigmoids.

Paper: Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
Detection", ICCV 2023 (BCKD); adapted here to heads with objectness and anchors.

Definitions, for a raw output `raw` of the student (s) and of the teacher (t):

    p = sigmoid(raw)
    g = p(objectness of the teacher)
    P = p(objectness) p(class)                    the score of a class
    soft(s, t) = BCE(s, p_t) |p_t - p_s|          the gap p_t - p_s is part of the gradient

Terms:

    obj = balance-weighted sum over levels of mean soft(objectness)
    cls = sum of g mean_c soft(classes) / sum of g
    box = sum of W (1 - CIoU(student's box, teacher's box)) / sum of g
          W = max_c |P_t - P_s|                   W is a constant for the gradient

The loss is hyp.box box + hyp.obj obj + hyp.cls cls. Each sum runs over all cells, anchors, levels
and images together; a sum of g below 1 counts as 1. Boxes are decoded in grid units. With a single
class, P is the objectness and the cls term is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from distill.base import LOGIT_LOSSES, LogitLoss
from utils.boxes import bbox_iou
from utils.losses import decode_boxes


@LOGIT_LOSSES.register("ast")
class AlignSoftTarget(LogitLoss):
    """Compare objectness, classes and boxes of student and teacher by soft targets.

    The loss is zero where student and teacher agree, and large only where their scores differ, so a
    background cell that both call background adds nothing.
    """

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return box, obj and cls terms weighted by the gains; see `LogitLoss.compare`."""
        setup, zero = self.setup, student[0].new_zeros(())
        box, obj, cls, objects = zero, zero, zero, zero
        for s, t, anchors, balance in zip(
            student, teacher, self.anchors.to(zero.device), setup.balance, strict=True
        ):
            objectness = t[..., 4].sigmoid()
            objects = objects + objectness.sum()
            obj = obj + balance * soft_target_loss(s[..., 4], t[..., 4]).mean()
            box = box + (self._score_gap(s, t) * _box_loss(s, t, anchors[:, None, None])).sum()
            if setup.nc > 1:
                cls = cls + (objectness * soft_target_loss(s[..., 5:], t[..., 5:]).mean(-1)).sum()
        return setup.obj * obj + (setup.box * box + setup.cls * cls) / objects.clamp(min=1)

    @torch.no_grad()
    def _score_gap(self, s: Tensor, t: Tensor) -> Tensor:
        """Return max_c |P_t - P_s|, 0..1: raw maps (..., 5 + nc) give (...)."""
        return (self._scores(t) - self._scores(s)).abs().amax(-1)

    def _scores(self, raw: Tensor) -> Tensor:
        """Return the score P of each class: raw map (..., 5 + nc) gives (..., nc)."""
        objectness = raw[..., 4:5].sigmoid()
        return objectness * raw[..., 5:].sigmoid() if self.setup.nc > 1 else objectness


def soft_target_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return the cross-entropy of student logits with the teacher's sigmoids, times their gap.

    Both arguments are logits of one shape; the result has the same shape.
    """
    target = t.sigmoid()
    cross_entropy = binary_cross_entropy_with_logits(s, target, reduction="none")
    return cross_entropy * (target - s.sigmoid()).abs()


def _box_loss(s: Tensor, t: Tensor, anchors: Tensor) -> Tensor:
    """Return 1 - CIoU of the student's and the teacher's box of each anchor.

    Boxes are decoded relative to the corner of the cell that both share.

    Args:
        s: Raw maps of the student, (..., 5 + nc).
        t: Raw maps of the teacher, (..., 5 + nc).
        anchors: Anchor sizes in grid units, broadcastable to (..., 2).
    """
    return 1 - bbox_iou(decode_boxes(s[..., :4], anchors), decode_boxes(t[..., :4], anchors))
