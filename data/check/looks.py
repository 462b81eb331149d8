"""What an image looks like, in few bytes: a hash of its file, a thumbnail, a perceptual hash.

The perceptual hash is pHash: the signs, against their median, of the 8 x 8 lowest frequencies of
the cosine transform of a thumbnail. Zauner, "Implementation and Benchmarking of Perceptual Image
Hash Functions", 2010. Mirrored and turned images have the same frequencies with other signs, or
with rows and columns swapped, so that the hashes of all eight orientations come from one transform.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data.images import READ_ERRORS, read_image
from utils.errors import UserError

SIDE = 32  # pixels of a thumbnail
LOW = 8  # frequencies of the hash on each axis
FLAT = 2.0  # grey levels; thumbnails of less deviation look all alike
ORIENTATIONS = 8
FEW = 500  # images that are read without a bar
REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


class Look(NamedTuple):
    """What one image looks like."""

    digest: bytes  # of the file
    thumbnail: np.ndarray  # (SIDE, SIDE) uint8 grey, stretched


@dataclass(frozen=True)
class Looks:
    """What images look like.

    Attributes:
        numbers: (n,): which of the given images these are, those that can be read.
        digests: Digest of each file.
        thumbnails: (n, SIDE, SIDE) uint8.
        hashes: (ORIENTATIONS, n) uint64: hash of each image in each orientation, the first upright.
        flat: (n,) bool: images of hardly any contrast, which are only compared by their digests.
    """

    numbers: np.ndarray
    digests: list[bytes]
    thumbnails: np.ndarray
    hashes: np.ndarray
    flat: np.ndarray


def read_looks(files: Sequence[Path], shapes: np.ndarray) -> Looks:
    """Read images, with a bar for more than a few; those that cannot be read are left out.

    Args:
        files: Images.
        shapes: (n, 2) width and height of each.
    """
    sides = shapes.min(1).tolist() if len(shapes) else []
    found: list[Look | None] = []
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(None, "Comparing images", len(files), leave=False, disable=len(files) < FEW) as bar,
    ):
        for look in pool.map(_read, files, sides):
            found.append(look)
            bar.update()
    kept = [i for i, look in enumerate(found) if look is not None]
    looks = [look for look in found if look is not None]
    thumbnails = np.array([look.thumbnail for look in looks], np.uint8).reshape(-1, SIDE, SIDE)
    return Looks(
        np.array(kept, int),
        [look.digest for look in looks],
        thumbnails,
        hashes_of(thumbnails),
        thumbnails.std((1, 2)) < FLAT if len(looks) else np.zeros(0, bool),
    )


def _read(file: Path, side: int) -> Look | None:
    """Return the look of an image whose shorter side is known; None where it cannot be read."""
    try:
        content = file.read_bytes()
        grey = _grey(file, content, side)
    except (*READ_ERRORS, UserError):
        return None
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Look(hashlib.blake2b(content, digest_size=16).digest(), small)


def _grey(file: Path, content: bytes, side: int) -> np.ndarray:
    """Return the grey pixels of an image, upright, decoded at an eighth where that is enough."""
    flag = next((flag for part, flag in REDUCED if side >= 2 * SIDE * part), cv2.IMREAD_GRAYSCALE)
    grey = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    return cv2.cvtColor(read_image(file), cv2.COLOR_RGB2GRAY) if grey is None else grey


def hashes_of(thumbnails: np.ndarray) -> np.ndarray:
    """Return the hashes of thumbnails in all orientations, (ORIENTATIONS, n) uint64."""
    low = np.array([cv2.dct(t.astype(np.float32))[:LOW, :LOW] for t in thumbnails], np.float32)
    low = low.reshape(-1, LOW, LOW)
    signs = np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32)
    forms = [base * rows * columns for base in (low, low.swapaxes(1, 2)) for rows, columns in (
        (1, 1), (1, signs), (signs[:, None], 1), (signs[:, None], signs)
    )]  # fmt: skip
    return np.array([_bits(form) for form in forms], np.uint64).reshape(ORIENTATIONS, -1)


def oriented(thumbnails: np.ndarray, orientation: int) -> np.ndarray:
    """Return thumbnails (n, SIDE, SIDE) in the orientation that a row of the hashes stands for."""
    if orientation >= ORIENTATIONS // 2:
        thumbnails = thumbnails.swapaxes(1, 2)
    rows, columns = divmod(orientation % (ORIENTATIONS // 2), 2)
    return thumbnails[:, :: -1 if rows else 1, :: -1 if columns else 1]


def _bits(low: np.ndarray) -> np.ndarray:
    """Return the hash of frequencies (n, LOW, LOW): one bit each, the brightness left out."""
    if not len(low):
        return np.zeros(0, np.uint64)
    flat = low.reshape(len(low), -1)
    bits = flat > np.median(flat[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]
