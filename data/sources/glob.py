"""Patterns of file names: `photos/*.jpg`, `photos/**/*.png`."""

import glob
from pathlib import Path

from data.sources.base import SOURCES, Feed, SourceKind, SourceOptions
from data.sources.folder import READ, file_feeds
from utils.errors import UserError


@SOURCES.register("glob")
class Glob(SourceKind):
    """A pattern with `*`, `?` or `[...]`; `**` stands for any folders."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is a pattern and no existing file's name."""
        return glob.has_magic(text) and "://" not in text and not Path(text).exists()

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return a feed for each image and video that the pattern matches.

        Raises:
            UserError: Where there is none.
        """
        names = glob.glob(text, recursive=True)  # noqa: PTH207  an absolute pattern is fine here
        files = [Path(name) for name in names if Path(name).suffix.lower() in READ]
        found = file_feeds((file for file in files if not file.is_dir()), options)
        if not found:
            raise UserError(f"{text}: no image or video matches ({len(names)} other matches)")
        return found
