"""AlignSoftTarget: the teacher's scores as soft targets of the detector's own sigmoids.

After "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection" (Yang
et al., ICCV 2023, BCKD), for heads with objectness and anchors. With p = sigmoid(raw), g =
p(teacher's objectness), score P = p(objectness) p(class), and

    soft(s, t) = BCE(s, p_t) |p_t - p_s|          the gap p_t - p_s is part of the gradient

    obj = balance-weighted sum over levels of mean soft(objectness)
    cls = sum of g mean_c soft(classes) / sum of g
    box = sum of W (1 - CIoU(student's box, teacher's)) / sum of g,  W = max_c |P_t - P_s|, a
      constant for the gradient

and the value is hyp.box box + hyp.obj obj + hyp.cls cls. Sums run over all cells, anchors, levels
and images together; a sum of g below 1 counts as 1. Boxes are decoded in grid units. With one class
P is the objectness and there is no cls term.
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
    """Zero where student and teacher agree, and large only where their scores differ: background
    that both call so is silent.
    """

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """See LogitLoss."""
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
        """Largest difference of the two scores over the classes: raw (..., 5 + nc) ->
        (...), 0..1.
        """
        return (self._scores(t) - self._scores(s)).abs().amax(-1)

    def _scores(self, raw: Tensor) -> Tensor:
        objectness = raw[..., 4:5].sigmoid()
        return objectness * raw[..., 5:].sigmoid() if self.setup.nc > 1 else objectness


def soft_target_loss(s: Tensor, t: Tensor) -> Tensor:
    """Cross-entropy of each student logit with the teacher's sigmoid, times the gap of the
    sigmoids; any shape -> the same.
    """
    target = t.sigmoid()
    return (
        binary_cross_entropy_with_logits(s, target, reduction="none") * (target - s.sigmoid()).abs()
    )


def _box_loss(s: Tensor, t: Tensor, anchors: Tensor) -> Tensor:
    """1 - CIoU of the two boxes of each anchor, from the corner of the cell that they share."""
    return 1 - bbox_iou(decode_boxes(s[..., :4], anchors), decode_boxes(t[..., :4], anchors))
