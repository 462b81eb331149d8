"""Streams and cameras: a thread reads each, and the newest frame is given.

A stream that ends, fails or falls silent is closed with a line, so that nothing waits for ever.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2

from data.sources.base import Feed, Frame, SourceOptions
from data.sources.video import MOST_FPS
from utils.errors import UserError
from utils.log import LOGGER

CHECK_EVERY = 0.2  # seconds between two looks for silence
CLOSING = 1.0  # seconds that a thread is given to end


class LiveFeed(Feed):
    """A stream or a camera.

    Args:
        place: How messages name the feed.
        open_capture: Opens it; called in the reading thread, because opening may hang.
        options: How the feed is read.
    """

    moving = live = True

    def __init__(
        self, place: str, open_capture: Callable[[], "cv2.VideoCapture"], options: SourceOptions
    ):
        super().__init__(place)
        self.open_capture, self.options = open_capture, options
        self.passed_over = 0  # frames that came while an earlier one was worked on

    def count(self) -> int | None:
        """Return None: nobody knows."""
        return None

    def frames(self) -> Iterator[Frame]:
        """Yield the newest frame each time, until the feed ends or falls silent."""
        return (frame for _, frame in live_frames([self]))


def live_frames(feeds: Sequence[LiveFeed]) -> Iterator[tuple[LiveFeed, Frame]]:
    """Yield the newest frames of all feeds in turn, until each has ended or fallen silent.

    Raises:
        UserError: Where the only feed gives no frame at all.
    """
    arrived = threading.Condition()
    readers = [_Reader(feed, arrived) for feed in feeds]
    try:
        for reader in readers:
            reader.start()
        active = readers
        while active:
            with arrived:
                arrived.wait_for(lambda: any(r.has_news for r in active), CHECK_EVERY)  # noqa: B023
            for reader in active:
                if (frame := reader.take()) is not None:
                    yield reader.feed, frame
            active = [reader for reader in active if not _closed(reader, alone=len(feeds) == 1)]
    finally:
        for reader in readers:
            reader.stop()


def _closed(reader: "_Reader", alone: bool) -> bool:
    """Return whether a feed is over, and say why in one line.

    Raises:
        UserError: Where it is the only feed and has given nothing.
    """
    feed, limit = reader.feed, reader.feed.options.silence
    ended = reader.ended  # looked up before `waiting`: the last frame comes before the end
    if reader.waiting or (ended is None and reader.silent_for < limit):
        return False
    reason = ended if ended is not None else f"no frame for {limit:g} s, given up"
    if not reader.given:
        message = f"{feed.place}: {reason or 'ended without a frame'}"
        if alone:
            raise UserError(message)
        feed.lose(message)
    elif ended is None:
        LOGGER.warning(f"{feed.place}: {reason}")
    else:
        why = f": {ended}" if ended else ""
        LOGGER.info(f"{feed.place}: the stream has ended after {reader.arrived} frames{why}")
    return True


class _Reader(threading.Thread):
    """The thread that reads one feed and keeps its newest frame."""

    def __init__(self, feed: LiveFeed, condition: threading.Condition):
        super().__init__(daemon=True, name=f"reader of {feed.place}")
        self.feed = feed
        self.ended: str | None = None  # why; "" for the end of a stream
        self.arrived = 0  # frames
        self.given = 0  # frames
        self._condition = condition
        self._newest: Frame | None = None
        self._start = self._last = time.monotonic()
        self._stopped = False

    @property
    def waiting(self) -> bool:
        """Whether a frame waits to be taken."""
        return self._newest is not None

    @property
    def has_news(self) -> bool:
        """Whether there is a frame to take, or the feed has ended."""
        return self.waiting or self.ended is not None

    @property
    def silent_for(self) -> float:
        """Seconds since the last frame arrived, or since the start."""
        return time.monotonic() - self._last

    def take(self) -> Frame | None:
        """Return the newest frame that has not been taken, or None."""
        with self._condition:
            frame, self._newest = self._newest, None
        self.given += frame is not None
        return frame

    def stop(self) -> None:
        """Ask the thread to end, and wait a moment; a thread that hangs is left behind."""
        self._stopped = True
        if self.is_alive():
            self.join(CLOSING)

    def run(self) -> None:
        """Read until the feed ends or `stop` is called."""
        capture: Any = None
        try:
            capture = self.feed.open_capture()
            if not capture.isOpened():
                self._end("cannot be opened")
                return
            self._set_rate(capture)
            while not self._stopped and self._read(capture):
                pass
            self._end("")
        except cv2.error as error:
            self._end(f"cannot be read: {' '.join(str(error).split())[:200]}")
        finally:
            if capture is not None:
                capture.release()

    def _set_rate(self, capture: "cv2.VideoCapture") -> None:
        """Set the feed's frames per second as far as the capture knows them."""
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.feed.fps = fps / self.feed.options.vid_stride if 0 < fps <= MOST_FPS else 0.0

    def _read(self, capture: "cv2.VideoCapture") -> bool:
        """Read one frame; return False at the end of the feed."""
        if not capture.grab():
            return False
        self.arrived += 1
        now = time.monotonic()
        self._last = now
        if (self.arrived - 1) % self.feed.options.vid_stride:
            return True
        good, image = capture.retrieve()
        if not good:
            self.feed.lost += 1
            return True
        if self.arrived == 1:
            self._start = now
        frame = Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self.arrived, now - self._start)
        with self._condition:
            self.feed.passed_over += self._newest is not None
            self._newest = frame
            self._condition.notify_all()
        return True

    def _end(self, reason: str) -> None:
        """Tell that nothing more comes."""
        with self._condition:
            self.ended = reason
            self._condition.notify_all()
