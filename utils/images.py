"""Images as the network takes them: values in 0..1, sides that are multiples of the stride."""

import torch
from torch import Tensor

from utils.log import LOGGER


def unit_range(images: Tensor) -> Tensor:
    """Return uint8 images (any shape, 0..255) as new float32 images in 0..1."""
    return images.to(torch.float32, copy=True).div_(255)


def whole_strides(imgsz: int, stride: int) -> int:
    """Return the image size, rounded up to a multiple of the stride (both in pixels).

    Warn where the result is another size than the one asked for.
    """
    size = -(-imgsz // stride) * stride
    if size != imgsz:
        LOGGER.warning(f"--imgsz {imgsz}: not a multiple of the stride {stride}, using {size}")
    return size
