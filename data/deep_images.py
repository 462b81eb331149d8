"""Read images of more than 8 bits a channel: 16-bit PNG, 16- and 32-bit and float TIFF.

Cameras and scanners store 10, 12 or 14 bits in 16-bit files. The white level is therefore that of
the values, not that of the file's type.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # place of the bit depth in the header
TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
BITS_PER_SAMPLE = 258  # tag of TIFF
ORIENTATION = 0x0112  # tag of EXIF and TIFF
ONE_BYTE = 0.0  # white level of an 8-bit image, which needs no scaling
WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # 8, 10, 12, 14 and 16 bits
TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # by EXIF's orientation: what puts the pixels upright


def is_deep(path: Path) -> bool:
    """Return True for a file of more than 8 bits a channel, by its header."""
    with path.open("rb") as file:
        start = file.read(PNG_DEPTH + 1)
    if start.startswith(PNG_START):
        return start[PNG_DEPTH:] == b"\x10"
    if not start.startswith(TIFF_STARTS):
        return False
    with Image.open(path) as image:
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (1,))
    return max(bits) > 8


def white_level(path: Path) -> float:
    """Return the white level that the values of an image ask for; `ONE_BYTE` for 8-bit images.

    A float image up to 1 has 1, others that of the fewest of 8, 10, 12, 14 and 16 bits that hold
    the largest value.

    Raises:
        ValueError: Where there are negative values, NaN, or more than 16 bits.
        OSError: Where the file cannot be read.
    """
    if not is_deep(path):
        return ONE_BYTE
    values = read_values(path)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= WHITES[-1]:
        raise ValueError(f"values from {low:g} to {high:g} (0 to 65535, or floats of 0 to 1)")
    if high <= 1 and values.dtype.kind == "f":
        return 1.0
    return next(white for white in WHITES if high <= white)


def read_deep(path: Path, white: float) -> np.ndarray:
    """Return an image as (h, w, 3) uint8 RGB, upright, scaled by its white level.

    Whole levels keep their highest 8 bits, as OpenCV shortens 16 bits.
    """
    values = read_values(path)
    scaled = np.rint(values * 255.0) if white == 1 else np.floor(values * (256 / (white + 1)))
    return np.ascontiguousarray(scaled.clip(0, 255).astype(np.uint8))


def decode(path: Path, flags: int) -> np.ndarray | None:
    """Return the pixels of a file as OpenCV decodes it, None where it cannot.

    `cv2.imread` crashes the process on a name that is not UTF-8; bytes have no name.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return cv2.imdecode(np.fromfile(path, np.uint8), flags)
    return cv2.imread(str(path), flags)


def read_values(path: Path) -> np.ndarray:
    """Return the values of an image as (h, w, 3) RGB, upright; grey three times, without alpha.

    Raises:
        OSError: Where the file cannot be read.
    """
    with Image.open(path) as image:
        turn = image.getexif().get(ORIENTATION, 1)
        by_pillow = image.format == "TIFF" and turn in TURNS
        values = _grey_values(image) if by_pillow else decode(path, cv2.IMREAD_UNCHANGED)
    if values is None:
        raise OSError("the pixels cannot be decoded")
    if not by_pillow:
        values = TURNS.get(turn, np.asarray)(values)
    if values.ndim == 2 or values.shape[2] < 3:
        return np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, 2)
    return values[..., 2::-1]


def _grey_values(image: Image.Image) -> np.ndarray:
    """Return the values of a grey TIFF that its orientation turns; OpenCV cannot read those."""
    values = np.array(ImageOps.exif_transpose(image))
    if values.dtype == np.uint8:
        raise OSError("colour of more than 8 bits with an orientation; store it upright")
    return values
