"""Folders of images and videos, with all folders below them."""

from collections.abc import Iterable
from pathlib import Path

from data.files import IMAGE_SUFFIXES, files_below
from data.sources.base import SOURCES, Feed, SourceKind, SourceOptions
from data.sources.image import ImageFeed
from data.sources.video import VIDEO_SUFFIXES, VideoFeed
from utils.errors import UserError

READ = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def file_feeds(files: Iterable[Path], options: SourceOptions) -> list[Feed]:
    """Return a feed for each file by its suffix, sorted by path, each file once."""
    return [
        VideoFeed(file, options) if file.suffix.lower() in VIDEO_SUFFIXES else ImageFeed(file)
        for file in sorted(set(files))
    ]


@SOURCES.register("folder")
class Folder(SourceKind):
    """A folder."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is the path of a folder; a bare number is a camera."""
        return Path(text).is_dir() and not text.isdecimal()

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return a feed for each image and video below the folder.

        Raises:
            UserError: Where there is none.
        """
        found = file_feeds(files_below(Path(text), READ), options)
        if not found:
            raise UserError(
                f"{text}: no image or video found (looked for {', '.join(sorted(READ))})"
            )
        return found
