"""Text files with one source a line: images, videos, streams, cameras."""

from pathlib import Path

from data.files import IMAGE_SUFFIXES, read_list_lines
from data.sources.base import SOURCES, Feed, SourceKind, SourceOptions
from data.sources.image import ImageFeed
from data.sources.stream import Stream
from data.sources.video import VIDEO_SUFFIXES, VideoFeed
from data.sources.webcam import Webcam
from utils.errors import UserError
from utils.files import check_path, why_not_regular

LIST_SUFFIXES = (".txt", ".streams", ".list")


@SOURCES.register("list file")
class ListFile(SourceKind):
    """A list of sources; a path is relative to the list's folder, then to the working directory."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is the path of a file that is neither image nor video."""
        path = Path(text)
        media = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        return path.exists() and not path.is_dir() and path.suffix.lower() not in media

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the feeds of all lines in their order; a line twice counts once.

        Raises:
            UserError: Where the file is no list, or has no line.
        """
        path = Path(text)
        if reason := why_not_regular(path):
            raise UserError(f"{path}: {reason}")
        if path.suffix.lower() not in LIST_SUFFIXES:
            raise UserError(
                f"{path}: is neither an image nor a video nor a list ({', '.join(LIST_SUFFIXES)})"
            )
        lines = read_list_lines(path)
        if not lines:
            raise UserError(f"{path}: the list is empty; write one source a line")
        return [feed for line in dict.fromkeys(lines) for feed in _line_feeds(path, line, options)]


def _line_feeds(file: Path, line: str, options: SourceOptions) -> list[Feed]:
    """Return the feed of one line; a missing file is said when it is read."""
    if Stream.matches(line):
        return Stream.feeds(line, options)
    if line.isdecimal():
        return Webcam.feeds(line, options)
    check_path(line, str(file))
    beside = file.parent / line
    found = Path(line) if not beside.exists() and Path(line).exists() else beside
    if found.suffix.lower() in VIDEO_SUFFIXES:
        return [VideoFeed(found, options)]
    return [ImageFeed(found)]
