"""Test-time augmentation: one image seen at three sizes, once mirrored, its predictions put
together for one NMS.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIEWS = (
    (1.0, False),
    (0.83, True),
    (0.67, False),
)  # size factor, mirrored; largest first, YOLOv5's values
PAD = 0.447  # ImageNet's mean grey, 0..1


def predict_augmented(model: nn.Module, images: Tensor) -> Tensor:
    """Decoded predictions of all views, in pixels of `images`.

    `images` float (N, 3, H, W), `model` in eval mode with `.stride`. Returns (N, M', 5 + nc). As in
    YOLOv5 the full-size view leaves the largest objects (its coarsest level) to the smaller views,
    and the smallest view the smallest ones to the others.
    """
    width, stride = images.shape[3], int(max(model.stride))  # pyright: ignore[reportArgumentType]
    found = []
    for factor, mirrored in VIEWS:
        decoded, raw = model(_resized(images.flip(3) if mirrored else images, factor, stride))
        boxes, scores = decoded[..., :4] / factor, decoded[..., 4:]
        if mirrored:
            boxes = torch.cat((width - boxes[..., :1], boxes[..., 1:]), 2)
        found.append((torch.cat((boxes, scores), 2), [level.shape[1:4].numel() for level in raw]))
    if len(found[0][1]) > 1:
        (largest, levels), *between, (smallest, small_levels) = found
        found = [
            (largest[:, : -levels[-1]], levels),
            *between,
            (smallest[:, small_levels[0] :], small_levels),
        ]
    return torch.cat([boxes for boxes, _ in found], 1)


def _resized(images: Tensor, factor: float, stride: int) -> Tensor:
    """Shrunk images, padded right and below to multiples of `stride`."""
    if factor == 1:
        return images
    height, width = images.shape[2:]
    small = F.interpolate(
        images, (int(height * factor), int(width * factor)), mode="bilinear", align_corners=False
    )
    bottom, right = (
        math.ceil(full * factor / stride) * stride - part
        for full, part in zip((height, width), small.shape[2:], strict=True)
    )
    return F.pad(small, (0, right, 0, bottom), value=PAD)
