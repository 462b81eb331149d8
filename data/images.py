"""Reading images: always RGB, 8 bit, upright; and finding out cheaply whether a file is whole."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError

cv2.setNumThreads(
    0
)  # images are small and loader workers many: threads inside OpenCV only get in their way

READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)  # what Pillow raises on broken files
ORIENTATION_TAG = 0x0112
QUARTER_TURNS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
JPEG_END = b"\xff\xd9"


def probe_image(path: Path) -> tuple[int, int]:
    """(width, height) as shown, EXIF orientation applied.

    Raises one of `READ_ERRORS` where the file is broken or cut short.

    Headers and checksums are read. A JPEG that does not end as it should is decoded in full to see
    whether it is whole, a TIFF always: it is Pillow's decoder that turns it.
    """
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        if image.format == "TIFF" or (
            image.format in {"JPEG", "MPO"} and not _ends_with(path, JPEG_END)
        ):
            image.load()
        width, height = image.size
        turned = image.getexif().get(ORIENTATION_TAG) in QUARTER_TURNS
    return (height, width) if turned else (width, height)


def _ends_with(path: Path, marker: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(-len(marker), os.SEEK_END)
        return file.read() == marker


def read_image(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB from grey, 16-bit, palette, alpha or CMYK files alike, EXIF orientation
    applied.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    return _read_with_pillow(path) if image is None else image


def _read_with_pillow(path: Path) -> np.ndarray:
    """What OpenCV cannot read although the file is whole, such as a TIFF that EXIF turns (OpenCV
    5.0).
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image") from error


def resize_long_side(image: np.ndarray, size: int, *, smooth: bool) -> np.ndarray:
    """The image with its longer side at `size` px, proportions kept.

    `smooth` averages areas when shrinking (evaluation); otherwise bilinear, which is quicker
    (training).
    """
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    if ratio == 1:
        return image
    method = cv2.INTER_AREA if smooth and ratio < 1 else cv2.INTER_LINEAR
    return cv2.resize(
        image, (max(1, round(width * ratio)), max(1, round(height * ratio))), interpolation=method
    )
