"""Write annotated videos that every player opens, and prove that all frames are in the file."""

import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from data.augment import letterbox
from data.sources.video import MOST_FPS
from utils.files import StorageError, umask
from utils.log import LOGGER

USUAL_FPS = 30.0  # of a source that does not know its own
CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
"""Container and codec in the order of preference, both in every opencv wheel; H.264 is in none.

MPEG-4 takes frames from 2 x 2 to 8191 px; Motion JPEG takes all others.
"""
LITTLE_SPACE = 1_000_000  # bytes; a disk with less counts as full
LONGEST_GAP = 10.0  # seconds that one frame of a live feed is shown at most


class VideoFile:
    """A video in the making; the file takes its name once it is closed.

    Args:
        path: File without its suffix, which the codec decides.
        frame: The first frame, (h, w, 3) uint8 RGB; the others are fitted to its size.
        fps: Frames per second; 0 where unknown.
        live: The frames come in real time: each is repeated until the next one's time.
    """

    def __init__(self, path: Path, frame: np.ndarray, fps: float, live: bool = False):
        height, width = frame.shape[:2]
        self.size = (width + width % 2, height + height % 2)  # chroma is stored for 2 x 2 px
        self.fps = fps if 0 < fps <= MOST_FPS else USUAL_FPS
        self.live, self.written = live, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._temporary, self._writer = self._opened(path)

    def add(self, frame: np.ndarray, seconds: float = 0.0) -> None:
        """Write a frame.

        Args:
            frame: (h, w, 3) uint8 RGB.
            seconds: Its time since the first one; read for live feeds only.
        """
        width, height = self.size
        if frame.shape[0] in (height, height - 1) and frame.shape[1] in (width, width - 1):
            frame = np.pad(
                frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), "edge"
            )
        else:  # a stream that changes its size
            frame = letterbox(frame, height, width)[0]
        pixels = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        for _ in range(self._copies(seconds)):
            self._writer.write(pixels)
            self.written += 1

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            StorageError: Frames are missing: the disk is full.
        """
        self._writer.release()
        stored = stored_frames(self._temporary)
        if stored < self.written:
            full = shutil.disk_usage(self.path.parent).free < LITTLE_SPACE
            reason = "disk full" if full else "the file is incomplete"
            self._temporary.unlink(missing_ok=True)
            raise StorageError(
                f"{self.path}: cannot be written: {reason} ({stored} of {self.written} frames)"
            )
        self._temporary.chmod(0o666 & ~umask())
        self._temporary.replace(self.path)

    def _copies(self, seconds: float) -> int:
        """Return how often a frame is written, so that a live feed keeps its time."""
        if not self.live:
            return 1
        due = round(min(seconds, self.written / self.fps + LONGEST_GAP) * self.fps) + 1
        return max(1, due - self.written)

    def _opened(self, path: Path) -> tuple[Path, Path, cv2.VideoWriter]:
        """Return the final file, the temporary one and its open writer."""
        for suffix, codec in CODECS:
            final = path.with_name(path.name + suffix)
            temporary = _temporary_file(final)
            fourcc = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(str(temporary), fourcc, self.fps, self.size)
            if writer.isOpened():
                return final, temporary, writer
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: no video of {self.size[0]}x{self.size[1]} px at {self.fps:g} frames a second"
            " can be written; --nosave goes on without"
        )


def stored_frames(file: Path) -> int:
    """Return the number of frames that the header of a finished video states."""
    video = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    count = int(max(0.0, video.get(cv2.CAP_PROP_FRAME_COUNT))) if video.isOpened() else 0
    video.release()
    return count


def _temporary_file(final: Path) -> Path:
    """Make an empty file beside the final one under a name that `sweep_leftovers` knows."""
    try:
        descriptor, name = tempfile.mkstemp(
            dir=final.parent, prefix=f".{final.name}.", suffix=f".tmp{final.suffix}"
        )
    except OSError as error:
        raise StorageError(f"{final}: cannot be written: {error.strerror}") from error
    os.close(descriptor)
    return Path(name)


class Videos:
    """The open videos of a run, by the name of their feed."""

    def __init__(self) -> None:
        self._open: dict[str, VideoFile] = {}
        self.files: list[Path] = []  # finished

    def get(self, path: Path, frame: np.ndarray, fps: float, live: bool) -> VideoFile:
        """Return the video of a feed, opened with its first frame."""
        key = str(path)
        if key not in self._open:
            if not live:  # files come one after another
                self.close()
            if not fps:
                LOGGER.warning(f"{path.name}: frames per second unknown: written at {USUAL_FPS:g}")
            self._open[key] = VideoFile(path, frame, fps, live)
        return self._open[key]

    def close(self) -> None:
        """Finish all open videos, each of them even where another one fails."""
        failed: StorageError | None = None
        while self._open:
            video = self._open.popitem()[1]
            try:
                video.close()
                self.files.append(video.path)
            except StorageError as error:
                failed = error
        if failed is not None:
            raise failed
