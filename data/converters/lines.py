"""Turn boxes in pixels into the texts of label files, for many images at a time."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OUTSIDE, NO_AREA, TWICE = "outside of the image", "no area", "there twice"
NOT_ASKED = "class that is not asked for"
SMALLEST = 0.5e-6  # of a side; narrower boxes are 0.000000 in the text
LINE = "%d %.6f %.6f %.6f %.6f\n"  # a hundredth of a pixel at 10,000 pixels


class Texts(NamedTuple):
    """Texts of label files, and what became of the boxes of all of them."""

    texts: list[str]
    classes: Counter[int]  # lines by class
    dropped: Counter[str]  # boxes that are in no text, by reason
    clipped: int  # boxes that reached out of the image and were cut at its edge


def label_texts(
    boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], ids: np.ndarray
) -> Texts:
    """Return the texts of images with the boxes that lie in them, cut at their edges.

    Args:
        boxes: Of each image (n, 5) float64: class, x1, y1, x2, y2 in pixels.
        sizes: Width and height of each image in pixels.
        ids: (classes,): id in the text of each class of the boxes; -1 for those to leave out.

    Returns:
        `Texts`.
    """
    owners = np.repeat(np.arange(len(boxes)), [len(rows) for rows in boxes])
    rows = np.concatenate([np.zeros((0, 5)), *boxes])
    edges = np.array(sizes, np.float64).reshape(-1, 2)[owners][:, [0, 1, 0, 1]]
    kinds, corners = ids[rows[:, 0].astype(int)], rows[:, 1:]
    inside = np.clip(corners, 0, edges)
    spans = (inside[:, 2:] - inside[:, :2]) / edges[:, :2]
    given = (corners[:, 2:] > corners[:, :2]).all(1)
    seen = (spans > SMALLEST).all(1)
    wanted = kinds >= 0
    reasons = {NOT_ASKED: ~wanted, NO_AREA: wanted & ~given, OUTSIDE: wanted & given & ~seen}
    dropped = Counter({why: int(found.sum()) for why, found in reasons.items() if found.any()})
    keep = np.flatnonzero(wanted & given & seen)
    centres = (inside[keep, :2] + inside[keep, 2:]) / (2 * edges[keep, :2])
    columns = np.column_stack([kinds[keep], centres, spans[keep]]).tolist()
    lines = [LINE % tuple(row) for row in columns]
    ends = np.searchsorted(owners[keep], np.arange(len(boxes) + 1)).tolist()
    parts = [lines[ends[i] : ends[i + 1]] for i in range(len(boxes))]
    for number, part in enumerate(parts):
        if len(set(part)) < len(part):
            parts[number] = list(dict.fromkeys(part))
            dropped[TWICE] += len(part) - len(parts[number])
    classes = Counter(int(line[: line.index(" ")]) for part in parts for line in part)
    clipped = int((inside[keep] != corners[keep]).any(1).sum())
    return Texts(["".join(part) for part in parts], classes, dropped, clipped)
