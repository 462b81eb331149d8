"""Images as the network takes them: values in 0..1."""

import torch
from torch import Tensor


def unit_range(images: Tensor) -> Tensor:
    """Return uint8 images (any shape, 0..255) as new float32 images in 0..1."""
    return images.to(torch.float32, copy=True).div_(255)
