"""Video files, by OpenCV's FFmpeg."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import cv2

from data.sources.base import SOURCES, Feed, Frame, SourceKind, SourceOptions
from utils.errors import UserError
from utils.files import why_not_regular

VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"}
    | {".wmv"}
)
MOST_FRAMES = 1e9  # of a header; more is not a count
MOST_FPS = 1000.0

# FFmpeg prints thousands of lines about a damaged file, which gets one line of ours; read by OpenCV
# when the first video is opened
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class VideoFeed(Feed):
    """One video file; every `vid_stride`-th frame is given, beginning with the first."""

    moving = True

    def __init__(self, file: Path, options: SourceOptions):
        super().__init__(str(file), file)
        self._stride = options.vid_stride
        self._stated: int | None = None  # frames by the header

    def count(self) -> int | None:
        """Return the number of frames that are given, by the header; None where it has none."""
        try:
            with opened_video(self.place) as video:
                self._read_header(video)
        except UserError:
            return None  # said when the frames are read
        return None if self._stated is None else math.ceil(self._stated / self._stride)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; those that cannot be decoded are counted and left out."""
        with opened_video(self.place) as video:
            self._read_header(video)
            read = broken = 0
            for number in count(1):
                if not video.grab():
                    break
                read = number
                if (number - 1) % self._stride:
                    continue
                good, image = video.retrieve()
                if good:
                    yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number)
                else:
                    broken += 1
        self._account(read, broken)

    def _read_header(self, video: cv2.VideoCapture) -> None:
        """Take the number of frames and their rate from a video's header."""
        frames, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        self._stated = int(frames) if 1 <= frames <= MOST_FRAMES else None
        self.fps = fps / self._stride if 0 < fps <= MOST_FPS else 0.0

    def _account(self, read: int, broken: int) -> None:
        """Say what a video lacks, once it has been read to its end.

        FFmpeg passes over what it cannot decode, so that only the number of frames tells. The
        header's number may be a guess: up to one frame in a hundred is not said.
        """
        if not read:
            raise UserError(f"{self.place}: has no frame that can be decoded")
        missing = (self._stated or 0) - read
        if missing <= read // 100:
            missing = 0
        if lost := broken + missing // self._stride:
            whole = self._stated or read
            self.lose(f"{self.place}: {lost} of {whole} frames cannot be decoded", lost)


@contextmanager
def opened_video(place: str) -> Iterator[cv2.VideoCapture]:
    """Open a video file for the block.

    Raises:
        UserError: Where the file is missing, or no video.
    """
    if reason := why_not_regular(Path(place)):
        raise UserError(f"{place}: {reason}")
    if not place.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in place):
        raise UserError(f"{place!a}: its name is not UTF-8, which FFmpeg cannot open; rename it")
    video = cv2.VideoCapture(place, cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise UserError(
                f"{place}: cannot be read as a video: it is cut short, damaged or of a kind that"
                " FFmpeg does not know"
            )
        yield video
    finally:
        video.release()


@SOURCES.register("video")
class Video(SourceKind):
    """A video file."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is the path of a file with a suffix of videos."""
        path = Path(text)
        return path.suffix.lower() in VIDEO_SUFFIXES and path.exists() and not path.is_dir()

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the one feed of the video."""
        return [VideoFeed(Path(text), options)]
