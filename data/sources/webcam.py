"""Cameras by their number: 0 is the first."""

import cv2

from data.sources.base import SOURCES, Feed, SourceKind, SourceOptions
from data.sources.live import LiveFeed
from utils.errors import UserError

MOST_CAMERAS = 99


def open_camera(number: int) -> cv2.VideoCapture:
    """Open a camera of this machine."""
    return cv2.VideoCapture(number)


@SOURCES.register("webcam")
class Webcam(SourceKind):
    """A camera of this machine."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is a number; the folder `0` is written `./0`."""
        return text.isascii() and text.isdecimal()

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the feed of the camera.

        Raises:
            UserError: Where no camera can have the number.
        """
        if len(text) > 3 or int(text) > MOST_CAMERAS:
            raise UserError(f"--source {text[:20]}: a camera has a number from 0 to {MOST_CAMERAS}")
        number = int(text)
        return [LiveFeed(f"camera {number}", lambda: open_camera(number), options)]
