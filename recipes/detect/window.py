"""The window of --view-img, where this OpenCV and this machine have windows."""

import os
import re
import sys

import cv2

from recipes.detect.outputs import Found
from utils.errors import UserError

CLOSING_KEYS = {ord("q"), 27}  # 27: Escape
LONGEST_SIDE = 1280  # px of a window


class Closed(Exception):  # noqa: N818  an ending, not an error
    """The user has closed the window."""


class Window:
    """Shows each annotated frame; q or Escape ends the run as Ctrl-C does."""

    def __init__(self) -> None:
        """Open nothing yet, but find out whether windows can be opened.

        Raises:
            UserError: They cannot: OpenCV without windows would fail, and its Qt would abort.
        """
        headless = re.search(r"GUI: +NONE", cv2.getBuildInformation()) is not None
        screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if headless or (sys.platform == "linux" and not screen):
            reason = "opencv-python-headless has none" if headless else "there is no display"
            raise UserError(
                f"--view-img: no window can be opened ({reason}); leave it out and look at the"
                " files in the run folder"
            )
        self._shown: set[str] = set()

    def add(self, found: Found) -> None:
        """Show a frame.

        Raises:
            Closed: The user pressed q or Escape.
        """
        title, pixels = found.feed.place, found.frame.pixels
        if title not in self._shown:
            self._shown.add(title)
            height, width = pixels.shape[:2]
            factor = min(1.0, LONGEST_SIDE / max(height, width))
            cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            cv2.resizeWindow(title, round(width * factor), round(height * factor))
        cv2.imshow(title, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        if cv2.waitKey(1) & 0xFF in CLOSING_KEYS:
            raise Closed

    def close(self) -> None:
        """Close the windows."""
        if self._shown:
            cv2.destroyAllWindows()
