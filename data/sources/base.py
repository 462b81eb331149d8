"""What detect.py reads: a source is opened as feeds, and a feed gives frames.

A kind of source is one file of this folder that registers a `SourceKind`; each text belongs to at
most one kind.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.log import LOGGER
from utils.registry import Registry

SOURCES = Registry("kind of source")


@dataclass(frozen=True)
class SourceOptions:
    """How sources are read.

    Attributes:
        vid_stride: Every n-th frame of a video or stream is taken.
        silence: Seconds without a frame after which a stream or a camera is given up.
    """

    vid_stride: int = 1
    silence: float = 30.0


class Frame(NamedTuple):
    """One picture to detect in."""

    pixels: np.ndarray  # (h, w, 3) uint8 RGB
    number: int = 1  # of the frame in its video, from 1
    seconds: float = 0.0  # since the first frame of a live feed


class Feed(ABC):
    """One image, video, stream or camera.

    Attributes:
        place: How messages name the feed; never with a password.
        file: File of the feed; None for a stream or a camera.
        address: What tells the feed from others; not to be shown: it may have a password.
        moving: Whether the frames are those of a video.
        live: Whether the frames pass by whether or not they are read.
        fps: Frames per second that are given, 0 where unknown; right from the first frame on.
        lost: Number of frames that could not be read.
        reason: Why the first of them could not be read.
    """

    moving = False
    live = False

    def __init__(self, place: str, file: Path | None = None):
        self.place, self.file = place, file
        self.address = os.path.abspath(file) if file else place  # noqa: PTH100  without `..`
        self.fps = 0.0
        self.lost, self.reason = 0, ""

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yield the frames in their order.

        Raises:
            UserError: Where the feed cannot be read at all.
        """

    def count(self) -> int | None:
        """Return the number of frames, as far as the file says; None where unknown."""
        return 1

    def lose(self, reason: str, frames: int = 1) -> None:
        """Count frames that could not be read, and log why in one line."""
        self.lost += frames
        self.reason = self.reason or reason
        LOGGER.warning(f"left out: {reason}")


class SourceKind(ABC):
    """A kind of source: which texts name one, and which feeds it has."""

    @classmethod
    @abstractmethod
    def matches(cls, text: str) -> bool:
        """Return whether a text of `--source` names a source of this kind."""

    @classmethod
    @abstractmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the feeds of a source.

        Raises:
            UserError: Where there is none.
        """
