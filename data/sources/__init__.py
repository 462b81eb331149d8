"""Sources of pictures for detect.py: files, folders, patterns, lists, streams, cameras."""

import itertools
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

from data.sources.base import SOURCES, Feed, Frame, SourceOptions
from data.sources.live import LiveFeed, live_frames
from utils.errors import UserError
from utils.files import check_path
from utils.registry import import_files_of

__all__ = ["SOURCES", "Feed", "Frame", "SourceOptions", "frames_of", "open_sources"]

import_files_of(sys.modules[__name__])


def open_sources(texts: Sequence[str], options: SourceOptions) -> list[Feed]:
    """Return the feeds of all sources in their order; a file that is named twice counts once.

    Streams whose addresses differ in user or query alone are shown as `rtsp://host/x (2)`.

    Raises:
        UserError: Where a source does not exist, or holds nothing to detect in.
    """
    feeds = itertools.chain.from_iterable(_feeds_of(text, options) for text in texts)
    different: dict[str, Feed] = {}
    for feed in feeds:
        different.setdefault(feed.address, feed)
    _number_places([feed for feed in different.values() if feed.live])
    return list(different.values())


def _number_places(feeds: Sequence[Feed]) -> None:
    """Let no two feeds be shown alike."""
    seen: Counter[str] = Counter()
    for feed in feeds:
        seen[feed.place] += 1
        if (number := seen[feed.place]) > 1:
            feed.place = f"{feed.place} ({number})"


def _feeds_of(text: str, options: SourceOptions) -> list[Feed]:
    """Return the feeds of one source."""
    check_path(text, "--source")
    for name in SOURCES:
        if SOURCES[name].matches(text):
            return SOURCES[name].feeds(text, options)
    broken = "a link to nothing" if Path(text).is_symlink() else "no such file or folder"
    raise UserError(
        f"--source {text}: {broken}; a file, a folder, a pattern ('photos/*.jpg'), a list (.txt),"
        " a camera's number or an address (rtsp://, http://) would be right"
    )


def frames_of(feeds: Sequence[Feed]) -> Generator[tuple[Feed, Frame], None, None]:
    """Yield the frames of the files one after another, then those of all live feeds as they come.

    A feed that cannot be read is counted, said in a line and left out; see `Feed.lose`.
    """
    for feed in feeds:
        if not feed.live:
            try:
                for frame in feed.frames():
                    yield feed, frame
            except UserError as error:
                feed.lose(str(error))
    live = [feed for feed in feeds if isinstance(feed, LiveFeed)]
    try:
        yield from live_frames(live)
    except UserError as error:
        live[0].lose(str(error))
