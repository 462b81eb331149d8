"""Test-time augmentation: predictions at three sizes, once mirrored, put together for one NMS."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIEWS = ((1.0, False), (0.83, True), (0.67, False))
"""Size factor, and whether the view is mirrored; largest first, YOLOv5's values."""
PAD = 0.447  # ImageNet's mean grey, 0..1


def predict_augmented(model: nn.Module, images: Tensor) -> Tensor:
    """Return the decoded predictions of all views, in pixels of `images`.

    As in YOLOv5 the full-size view leaves the largest objects (its coarsest level) to the smaller
    views, and the smallest view leaves the smallest objects (its finest level) to the larger views.

    Args:
        model: Model in eval mode, with `.stride`.
        images: float, (N, 3, H, W).

    Returns:
        (N, M, 5 + nc), M predictions of all views together.
    """
    width, stride = images.shape[3], int(getattr(model, "max_stride", 0) or max(model.stride))  # pyright: ignore[reportArgumentType]
    views: list[Tensor] = []
    level_sizes: list[list[int]] = []  # predictions of each level, finest level first
    for factor, mirrored in VIEWS:
        seen = images.flip(3) if mirrored else images
        decoded, raw = model(_resized(seen, factor, stride))
        boxes, scores = decoded[..., :4] / factor, decoded[..., 4:]
        if mirrored:
            boxes = torch.cat((width - boxes[..., :1], boxes[..., 1:]), 2)
        views.append(torch.cat((boxes, scores), 2))
        level_sizes.append([level.shape[1:4].numel() for level in raw])
    if len(level_sizes[0]) > 1:
        coarsest, finest = level_sizes[0][-1], level_sizes[-1][0]
        views[0] = views[0][:, :-coarsest]
        views[-1] = views[-1][:, finest:]
    return torch.cat(views, 1)


def _resized(images: Tensor, factor: float, stride: int) -> Tensor:
    """Return shrunk images, padded right and below to multiples of `stride`."""
    if factor == 1:
        return images
    height, width = images.shape[2:]
    size = (int(height * factor), int(width * factor))
    small = F.interpolate(images, size, mode="bilinear", align_corners=False)
    bottom = math.ceil(height * factor / stride) * stride - size[0]
    right = math.ceil(width * factor / stride) * stride - size[1]
    return F.pad(small, (0, right, 0, bottom), value=PAD)
