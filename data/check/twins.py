"""Find images that are there twice: the same file, or nearly the same picture.

Hashes are compared by bands, not pair by pair: of two hashes that differ in at most 11 of 64 bits,
one of the four bands of 16 bits differs in at most two bits. Norouzi et al., "Fast Search in
Hamming Space with Multi-Index Hashing", CVPR 2012.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from data.check.looks import ORIENTATIONS, SIDE, Looks, oriented

BANDS, BAND_BITS = 4, 16
BAND_CHANGES = 2  # bits that are changed in a band, in every way, to find its neighbours
MOST_BITS = BANDS * (BAND_CHANGES + 1) - 1  # that the hashes of near twins differ in
LEAST_CORRELATION = 0.93  # of their thumbnails
BLOCK = 2_000_000  # pairs that are compared at a time


class Twins(NamedTuple):
    """Two images that are the same, or look so.

    Args:
        first, second: Numbers of the images, the first is smaller.
        likeness: Correlation of the thumbnails, 0 to 1; 2 where the files are the same.
        orientation: Orientation of the second in which they are alike; 0 upright.
    """

    first: int
    second: int
    likeness: float
    orientation: int

    @property
    def exact(self) -> bool:
        """Whether the files are the same byte by byte."""
        return self.likeness > 1


def exact_twins(looks: Looks) -> list[Twins]:
    """Return pairs of the same file: each further one with the first of its kind."""
    first: dict[bytes, int] = {}
    pairs = ((first.setdefault(digest, i), i) for i, digest in enumerate(looks.digests))
    return [Twins(a, b, 2.0, 0) for a, b in pairs if a != b]


def near_twins(looks: Looks) -> list[Twins]:
    """Return pairs of images that look alike in some orientation, but are not the same file.

    Of several copies of a file, one is compared.
    """
    _, once = np.unique(np.array(looks.digests, "S16"), return_index=True)
    once = np.sort(once)
    numbers = once[~looks.flat[once]]
    found: dict[tuple[int, int], Twins] = {}
    for orientation in range(ORIENTATIONS):
        base, turned = looks.hashes[0][numbers], looks.hashes[orientation][numbers]
        for a, b in near_pairs(base, turned):
            a, b = numbers[a], numbers[b]
            keep = a < b if orientation == 0 else a != b
            a, b = a[keep], b[keep]
            alike = correlations(looks.thumbnails[a], oriented(looks.thumbnails[b], orientation))
            for i in np.flatnonzero(alike >= LEAST_CORRELATION).tolist():
                key = min(int(a[i]), int(b[i])), max(int(a[i]), int(b[i]))
                if key not in found or found[key].likeness < alike[i]:
                    found[key] = Twins(*key, float(alike[i]), orientation)
    return sorted(found.values())


def near_pairs(base: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers of hashes (n,) and (m,) of uint64 that differ in at most `MOST_BITS` bits.

    A pair may be yielded several times. Blocks are bounded, however many hashes are the same.
    """
    for band in range(BANDS):
        shift = np.uint64(band * BAND_BITS)
        left, right = ((h >> shift) & np.uint64(0xFFFF) for h in (base, other))
        order = np.argsort(left, kind="stable")
        ranked = left[order]
        for mask in _masks():
            start = np.searchsorted(ranked, right ^ mask, "left")
            stop = np.searchsorted(ranked, right ^ mask, "right")
            for members, owners in _expanded(start, stop):
                a = order[members]
                near = bit_count(base[a] ^ other[owners]) <= MOST_BITS
                if near.any():
                    yield a[near], owners[near]


def _masks() -> list[np.uint64]:
    """Return all ways to change at most `BAND_CHANGES` bits of a band."""
    counts = range(BAND_CHANGES + 1)
    chosen = (bits for count in counts for bits in combinations(range(BAND_BITS), count))
    return [np.uint64(sum(1 << bit for bit in bits)) for bits in chosen]


def _expanded(start: np.ndarray, stop: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all numbers of the ranges start..stop with the number of their range, in blocks."""
    counts = stop - start
    ends = np.cumsum(counts)
    total, done = int(ends[-1]) if len(ends) else 0, 0
    while done < total:
        places = np.arange(done, min(done + BLOCK, total))
        owners = np.searchsorted(ends, places, "right")
        yield start[owners] + places - (ends[owners] - counts[owners]), owners
        done += BLOCK


def bit_count(values: np.ndarray) -> np.ndarray:
    """Return the number of bits that are set in each value, (n,) uint64."""
    table = np.array([number.bit_count() for number in range(256)], np.uint8)
    return table[values.view(np.uint8).reshape(len(values), 8)].sum(1)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of thumbnails, (n,), from (n, side, side) each."""
    x, y = (t.reshape(len(t), SIDE * SIDE).astype(np.float32) for t in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return (x * y).sum(1) / np.maximum(norms, 1e-9)
