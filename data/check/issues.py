"""What a check finds: an issue of a kind, with its worst examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from data.cache import Scan

MOST_EXAMPLES = 20
NO_BOXES = np.zeros((0, 5), np.float32)


class Level(IntEnum):
    """Gravity of an issue, which is the exit code that it asks for; a note asks for none."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Picture:
    """An image of an example.

    Args:
        file: The image.
        boxes: (n, 5) float32: class, xywh normalised; all boxes of the image.
        marked: Numbers of the boxes that the example is about.
    """

    file: Path
    boxes: np.ndarray
    marked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Example:
    """One case: what is wrong, and the images to look at, if any can be read."""

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Issue:
    """Something wrong with a data set.

    Args:
        kind: One of `utils.options.data.check.KINDS`.
        level: Gravity.
        text: The issue in one line.
        examples: The worst cases, at most `MOST_EXAMPLES`.
        count: Number of all cases.
    """

    kind: str
    level: Level
    text: str
    examples: Sequence[Example]
    count: int


@dataclass(frozen=True)
class Split:
    """A split as the scan sees it.

    Args:
        name: `train`, `val` or `test`.
        images: All image files.
        scan: Those that can be used, with labels, sizes and what is odd.
    """

    name: str
    images: list[Path]
    scan: Scan

    def picture(self, image: int, *marked: int) -> Picture:
        """Return a usable image by its number, with the numbers of the boxes to mark."""
        return Picture(self.scan.files[image], self.scan.labels[image], marked)
