"""Compute overlaps of boxes, clip boxes, and map them out of a letterbox.

`xyxy` are two corners, `xywh` a centre and a size. Units are free (pixels or 0..1), but the same in
both arguments.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_convert

from utils.nms import non_max_suppression

__all__ = [
    "bbox_iou",
    "clip_boxes",
    "non_max_suppression",
    "scale_boxes",
]

Letterbox = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]]
"""`((height, width), ((ratio_h, ratio_w), (pad_w, pad_h)))`: original size, resize factors, padding
in pixels."""


def bbox_iou(
    a: Tensor,
    b: Tensor,
    xywh: bool = True,
    kind: Literal["iou", "giou", "ciou"] = "ciou",
    eps: float = 1e-7,
) -> Tensor:
    """Return the overlap of each pair of boxes, (...); differentiable in both.

    Args:
        a: Boxes, (..., 4).
        b: Boxes, (..., 4), paired with `a` element by element.
        xywh: The boxes are centre and size; otherwise two corners.
        kind: Measure of overlap.
            `iou`: intersection over union, 0..1.
            `giou`: IoU minus the empty share of the enclosing box, -1..1 (Rezatofighi et al. 2019).
            `ciou`: IoU minus the squared distance of the centres over the squared diagonal of the
            enclosing box, minus the aspect term alpha v (Zheng et al. 2020). As in the paper and
            in YOLOv5, alpha is a constant for the gradient.
        eps: Keeps divisions by zero out.
    """
    # sizes are taken from the xywh form where it is given: high - low would lose digits, which
    # changes the aspect term
    (a_low, a_high), (b_low, b_high) = (
        (box_convert(box, "cxcywh", "xyxy") if xywh else box).split(2, -1) for box in (a, b)
    )
    a_size, b_size = (a[..., 2:], b[..., 2:]) if xywh else (a_high - a_low, b_high - b_low)

    overlap = (torch.min(a_high, b_high) - torch.max(a_low, b_low)).clamp(min=0).prod(-1)
    union = a_size.prod(-1) + b_size.prod(-1) - overlap + eps
    iou = overlap / union
    if kind == "iou":
        return iou

    enclosing = torch.max(a_high, b_high) - torch.min(a_low, b_low)
    if kind == "giou":
        area = enclosing.prod(-1) + eps
        return iou - (area - union) / area

    diagonal2 = enclosing.square().sum(-1) + eps
    distance2 = (b_low + b_high - a_low - a_high).square().sum(-1) / 4
    # of width / height; the clamp keeps the gradient of a box without any size finite
    a_angle, b_angle = (
        torch.atan2(size[..., 0], size[..., 1].clamp(min=eps)) for size in (a_size, b_size)
    )
    v = 4 / math.pi**2 * (b_angle - a_angle).square()
    with torch.no_grad():
        # the clamp: by rounding the iou of equal boxes may exceed 1
        alpha = v / (v - iou + (1 + eps)).clamp(min=eps)
    return iou - distance2 / diagonal2 - alpha * v


def clip_boxes(boxes: Tensor, height: float, width: float) -> Tensor:
    """Return corners (..., 4) in pixels, clipped to an image of `height` x `width`."""
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


def scale_boxes(boxes: Tensor, shapes: Letterbox) -> Tensor:
    """Map corners from a letterboxed image to the original file, and clip them to it.

    Args:
        boxes: Corners (..., 4), pixels of the letterboxed image.
        shapes: Size of the original and how it was letterboxed.

    Returns:
        Corners (..., 4), pixels of the original file.
    """
    (height, width), ((ratio_h, ratio_w), (pad_w, pad_h)) = shapes
    pad = boxes.new_tensor([pad_w, pad_h, pad_w, pad_h])
    ratio = boxes.new_tensor([ratio_w, ratio_h, ratio_w, ratio_h])
    return clip_boxes((boxes - pad) / ratio, height, width)
