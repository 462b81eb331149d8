"""Non-maximum suppression: from a model's decoded output to a few boxes an image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, nms

MAX_CANDIDATES = 30000
"""Most boxes of an image that enter NMS, the most confident ones; YOLOv5's value."""


def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Keep the best of overlapping boxes of the same class, as YOLOv5 does.

    The confidence of a box is objectness x class score, also with a single class. No image is
    skipped for lack of time.

    Args:
        prediction: (N, M, 5 + nc): centre x, y, width, height in pixels, then objectness and class
            scores, 0..1.
        conf_thres: Least confidence.
        iou_thres: IoU above which the less confident of two boxes is dropped.
        classes: Class ids to keep; None keeps all.
        agnostic: Whether boxes of different classes suppress each other.
        multi_label: Whether a box counts for every class above `conf_thres`, not only for its best.
        max_det: Most boxes of an image.

    Returns:
        N tensors (n, 6) = x1, y1, x2, y2 in pixels, confidence, class; most confident first.
    """
    wanted = None if classes is None else torch.as_tensor(list(classes), device=prediction.device)
    is_candidate = prediction[..., 4] > conf_thres
    detections = []
    for image, mask in zip(prediction, is_candidate, strict=True):
        found = _confident(image[mask].float(), conf_thres, multi_label)
        if wanted is not None:
            found = found[torch.isin(found[:, 5], wanted)]
        order = found[:, 4].argsort(descending=True, stable=True)
        found = found[order[:MAX_CANDIDATES]]
        detections.append(found[_kept(found, iou_thres, agnostic, max_det)])
    return detections


def _confident(boxes: Tensor, conf_thres: float, multi_label: bool) -> Tensor:
    """Return the boxes with a confidence above the threshold.

    Args:
        boxes: (n, 5 + nc), decoded boxes of one image.
        conf_thres: Least confidence.
        multi_label: Whether a box counts for every class above the threshold.

    Returns:
        (m, 6) = x1, y1, x2, y2, confidence, class.
    """
    scores = boxes[:, 5:] * boxes[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        box, label = (scores > conf_thres).nonzero(as_tuple=True)
        score = scores[box, label]
    else:
        score, label = scores.max(1)
        box = (score > conf_thres).nonzero()[:, 0]
        score, label = score[box], label[box]
    xyxy = box_convert(boxes[box, :4], "cxcywh", "xyxy")
    return torch.cat((xyxy, score[:, None], label[:, None].float()), 1)


def _kept(found: Tensor, iou_thres: float, agnostic: bool, max_det: int) -> Tensor:
    """Return the indices of the best boxes that survive, at most `max_det`.

    `found` is sorted by confidence, so less confident boxes do not change which of the best n
    survive. For that reason the function looks at a few boxes first, and at four times as many only
    where too few survived; in crowds of candidates this saves most of the work.
    """
    count = 4 * max_det
    while True:
        kept = _survivors(found[:count], iou_thres, agnostic)
        if len(kept) >= max_det or count >= len(found):
            return kept[:max_det]
        count *= 4


def _survivors(found: Tensor, iou_thres: float, agnostic: bool) -> Tensor:
    """Return the indices of the boxes that survive, best first."""
    xyxy, score, label = found[:, :4], found[:, 4], found[:, 5]
    if agnostic or not len(found):
        return nms(xyxy, score, iou_thres)
    # batched_nms moves the boxes of each class by (largest coordinate + 1), which keeps classes
    # apart only where no coordinate is negative.
    return batched_nms(xyxy - xyxy.min(), score, label, iou_thres)
