"""Read images as upright 8-bit RGB, resize them, and check cheaply whether a file is whole."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from data.deep_images import ONE_BYTE, decode, read_deep, white_level
from utils.errors import UserError

# images are small and loader workers many: threads inside OpenCV would only slow the workers down
cv2.setNumThreads(0)

# raised by Pillow and OpenCV on broken files
READ_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, struct.error, zlib.error, cv2.error),
    *(LookupError, ArithmeticError, MemoryError, RuntimeError, Image.DecompressionBombError),
)
ORIENTATION_TAG = 0x0112
QUARTER_TURNS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
JPEG_END = b"\xff\xd9"


def probe_image(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image after its EXIF orientation is applied.

    Headers and checksums are read. A JPEG without its end marker is decoded in full to see whether
    the file is whole. A TIFF is always decoded, because Pillow turns it while decoding.

    Raises:
        READ_ERRORS: One of them, where the file is broken or cut short.
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
    """Return True where the last bytes of a file are the marker."""
    with path.open("rb") as file:
        file.seek(-len(marker), os.SEEK_END)
        return file.read() == marker


def read_image(path: Path, white: float | None = None) -> np.ndarray:
    """Return an image as (h, w, 3) uint8 RGB with its EXIF orientation applied.

    The file may be grey, 16-bit, palette, alpha or CMYK.

    Args:
        path: File of the image.
        white: Value that becomes 255, `ONE_BYTE` for an image of 8 bits; None: the image's own,
            see `white_level`.

    Raises:
        UserError: Where the file cannot be read.
    """
    try:
        white = white_level(path) if white is None else white
        if white != ONE_BYTE:
            return read_deep(path, white)
    except READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image") from error
    try:
        image = decode(path, cv2.IMREAD_COLOR_RGB)
    except (OSError, cv2.error):  # cv2.error: more pixels than OpenCV takes, or an empty file
        image = None
    return _read_with_pillow(path) if image is None else image


def _read_with_pillow(path: Path) -> np.ndarray:
    """Read a file that OpenCV cannot, such as a TIFF that EXIF turns (OpenCV 5.0)."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image") from error


def resize_long_side(image: np.ndarray, size: int, *, smooth: bool) -> np.ndarray:
    """Resize an image to a longer side of `size` px and keep its proportions.

    With `smooth` areas are averaged when shrinking (evaluation); otherwise the resampling is
    bilinear, which is quicker (training).
    """
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    if ratio == 1:
        return image
    method = cv2.INTER_AREA if smooth and ratio < 1 else cv2.INTER_LINEAR
    resized = max(1, round(width * ratio)), max(1, round(height * ratio))
    return cv2.resize(image, resized, interpolation=method)
