"""Read images as upright 8-bit RGB, resize them, and check cheaply whether a file is whole."""

import os
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

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
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
HEADER = 4096  # bytes of a JPEG that are looked at before Pillow takes over
FRAME = struct.Struct(">BBHBHHB")  # 0xFF, kind, length; of a frame: bits, height, width, channels
FRAME_SEGMENTS = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive
EXIF_SEGMENT, PIXELS_SEGMENT = 0xE1, 0xDA
MOST_PIXELS = 50_000_000  # Pillow judges larger images


class ImageFacts(NamedTuple):
    """What the scan wants to know of an image."""

    size: tuple[int, int]  # width, height, after the EXIF orientation is applied
    white: float = ONE_BYTE  # value that becomes 255, see `white_level`


def probe_image(path: Path) -> ImageFacts:
    """Return size and white level of an image, after checking that the file is whole.

    Headers and checksums are read. A JPEG without its end marker is decoded in full to see whether
    the file is whole. A TIFF is always decoded, because Pillow turns it while decoding.

    Raises:
        READ_ERRORS: One of them, where the file is broken or cut short.
    """
    if size := _plain_jpeg_size(*_ends(path)):
        return ImageFacts(size)
    with path.open("rb") as file, Image.open(file) as image:
        jpeg = image.format in {"JPEG", "MPO"}  # always of 8 bits, and without checksums
        if jpeg and _ends_with(file, JPEG_END):
            return ImageFacts(_upright_size(image))
        if not jpeg:
            image.verify()
    with Image.open(path) as image:
        if jpeg or image.format == "TIFF":
            image.load()
        return ImageFacts(_upright_size(image), ONE_BYTE if jpeg else white_level(path))


def _ends(path: Path) -> tuple[bytes, bytes]:
    """Return the first `HEADER` bytes of a file, and its last two, in few system calls."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.read(descriptor, HEADER)
        if not head.startswith(JPEG_START):
            return head, b""
        end = max(0, os.lseek(descriptor, 0, os.SEEK_END) - len(JPEG_END))
        return head, os.pread(descriptor, len(JPEG_END), end)
    finally:
        os.close(descriptor)


def _plain_jpeg_size(head: bytes, end: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a whole JPEG without EXIF; None for all other files.

    The segments are walked from the start of the file to its pixels, ten times as quickly as Pillow
    reads their content. Whatever is unusual is left to Pillow.

    Args:
        head: First bytes of the file.
        end: Last two bytes of the file.
    """
    size, place = None, 2
    if not head.startswith(JPEG_START) or end != JPEG_END:
        return None
    while place + FRAME.size <= len(head):
        mark, kind, length, bits, height, width, channels = FRAME.unpack_from(head, place)
        if mark != 0xFF or kind == EXIF_SEGMENT:
            return None
        if kind == PIXELS_SEGMENT:
            return size
        if kind in FRAME_SEGMENTS:
            usual = bits == 8 and channels in {1, 3} and 0 < width * height < MOST_PIXELS
            size = (width, height) if usual else None
        place += 2 + length
    return None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an image after its EXIF orientation is applied."""
    width, height = image.size
    turned = "exif" in image.info or image.format != "JPEG"
    turned = turned and image.getexif().get(ORIENTATION_TAG) in QUARTER_TURNS
    return (height, width) if turned else (width, height)


def _ends_with(file: IO[bytes], marker: bytes) -> bool:
    """Return True where the last bytes of a file are the marker."""
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
