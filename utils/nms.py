"""Non-maximum suppression: from a model's decoded output to a few boxes an image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, nms

MAX_CANDIDATES = 30000  # most boxes of one image that enter NMS, the best ones; YOLOv5's value


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

    `prediction`: (N, M, 5 + nc), xywh in pixels, then objectness and class scores, 0..1. The
    confidence of a box is objectness x class score, with one class too. Each box counts for its
    best class; with `multi_label` for every class above `conf_thres`. `classes` keeps those ids
    only, `agnostic` lets boxes of different classes suppress each other. Returns N tensors (n, 6):
    xyxy in pixels, confidence, class; sorted by confidence, at most `max_det`.

    No image is ever skipped for lack of time.
    """
    wanted = None if classes is None else torch.as_tensor(list(classes), device=prediction.device)
    is_candidate = prediction[..., 4] > conf_thres
    detections = []
    for image, mask in zip(prediction, is_candidate, strict=True):
        found = _confident(image[mask].float(), conf_thres, multi_label)
        if wanted is not None:
            found = found[torch.isin(found[:, 5], wanted)]
        found = found[found[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
        detections.append(found[_kept(found, iou_thres, agnostic, max_det)])
    return detections


def _confident(boxes: Tensor, conf_thres: float, multi_label: bool) -> Tensor:
    """Decoded boxes (n, 5 + nc) to (m, 6) xyxy, confidence, class: all with a confidence above the
    threshold.
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
    """Indices of the at most `max_det` best boxes that survive; `found` is sorted by confidence.

    What survives among the best n boxes does not depend on the others. So a few are looked at
    first, and four times as many only where too few survived: in crowds of candidates that saves
    most of the work.
    """
    count = 4 * max_det
    while True:
        kept = _survivors(found[:count], iou_thres, agnostic)
        if len(kept) >= max_det or count >= len(found):
            return kept[:max_det]
        count *= 4


def _survivors(found: Tensor, iou_thres: float, agnostic: bool) -> Tensor:
    """Indices of the boxes that survive, best first."""
    xyxy, score, label = found[:, :4], found[:, 4], found[:, 5]
    if agnostic or not len(found):
        return nms(xyxy, score, iou_thres)
    # batched_nms moves each class by (largest coordinate + 1); that keeps classes apart only where
    # no coordinate is negative
    return batched_nms(xyxy - xyxy.min(), score, label, iou_thres)
