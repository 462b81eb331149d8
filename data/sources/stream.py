"""Streams by their address: RTSP, RTMP and HTTP, by OpenCV's FFmpeg."""

import re
from urllib.parse import urlsplit

import cv2

from data.sources.base import SOURCES, Feed, SourceKind, SourceOptions
from data.sources.live import LiveFeed
from utils.errors import UserError

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https")
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def open_stream(address: str, silence: float) -> cv2.VideoCapture:
    """Open a stream; FFmpeg gives up by itself after `silence` seconds without an answer."""
    limit = int(silence * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def without_password(address: str) -> str:
    """Return an address that can be shown: without user, password and query."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@SOURCES.register("stream")
class Stream(SourceKind):
    """A stream of the network."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is an address."""
        return SCHEME.match(text) is not None

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the feed of the stream.

        Raises:
            UserError: Where the address is of another kind, or wrong.
        """
        found = SCHEME.match(text)
        scheme = found.group(1).lower() if found else ""
        if scheme not in SCHEMES:
            raise UserError(
                f"--source {scheme}://...: streams begin with"
                f" {', '.join(f'{name}://' for name in SCHEMES)}"
            )
        try:
            place = without_password(text)
            host = urlsplit(text).hostname
        except ValueError:
            host = place = ""
        if not host:
            raise UserError(f"--source {scheme}://...: names no host")
        feed = LiveFeed(place, lambda: open_stream(text, options.silence), options)
        feed.address = text
        return [feed]
