"""Judge the boxes of an NMS against the predictions that it chose from.

Two NMS that are both right may keep different boxes where confidences tie within the rounding of
float32, so the sets themselves are not compared. A result is right if its boxes are predictions, if
no two of a class overlap too far, and if every other prediction has a reason to be missing.
"""

from torch import Tensor
from torchvision.ops import box_iou

from deploy.metadata import Metadata
from utils.nms import non_max_suppression

NEAR = 1e-3
"""Confidence and overlap within which a prediction may be on either side of a threshold."""


def difference_after_nms(kept: Tensor, predictions: Tensor, facts: Metadata) -> float:
    """Return how far the boxes of an NMS are from predictions; infinite where NMS is wrong.

    Args:
        kept: (n, 6) boxes of an image: xyxy, confidence, class; the most confident first.
        predictions: (M, 5 + nc) of the image.
        facts: Thresholds of the NMS.

    Returns:
        Largest distance of a kept box from the nearest prediction of its class, relative to the
        largest coordinate; confidences count relative to 1.
    """
    low = max(facts.conf_thres - NEAR, 0.0)
    everything = {"iou_thres": 1.0, "max_det": len(predictions)}
    candidates = non_max_suppression(predictions[None], low, **everything)[0]
    if len(kept) > facts.max_det or _overlapping(kept, facts.iou_thres):
        return float("inf")
    if _unexplained(candidates, kept, facts):
        return float("inf")
    if not len(kept):
        return 0.0
    if not len(candidates):
        return float("inf")
    scale = candidates.new_ones(5)
    scale[:4] = candidates[:, :4].abs().max()
    apart = ((kept[:, None, :5] - candidates[None, :, :5]) / scale).abs().amax(2)
    apart = apart.masked_fill(kept[:, None, 5] != candidates[None, :, 5], float("inf"))
    return float(apart.amin(1).max())


def _overlapping(kept: Tensor, iou_thres: float) -> bool:
    """Return whether two kept boxes of a class overlap above the threshold."""
    overlap = box_iou(kept[:, :4], kept[:, :4]) * (kept[:, None, 5] == kept[None, :, 5])
    return bool((overlap.fill_diagonal_(0) > iou_thres + NEAR).any())


def _unexplained(candidates: Tensor, kept: Tensor, facts: Metadata) -> bool:
    """Return whether a candidate is missing that NMS would keep.

    A candidate may be missing near the threshold, behind the last of `max_det` boxes, or under a
    kept box of its class that is at least as confident; a kept box is under itself.
    """
    edge = float(kept[-1, 4]) if len(kept) == facts.max_det else facts.conf_thres
    sure = candidates[candidates[:, 4] > edge + NEAR]
    if not len(kept):
        return len(sure) > 0
    covered = box_iou(sure[:, :4], kept[:, :4]) > facts.iou_thres - NEAR
    covered &= sure[:, None, 5] == kept[None, :, 5]
    covered &= kept[None, :, 4] > sure[:, None, 4] - NEAR
    return not bool(covered.any(1).all())
