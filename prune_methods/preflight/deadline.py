"""A time limit for code that cannot be asked to stop, such as a library's call."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(Exception):
    """The time of a `Deadline.attempt` is over."""


class Deadline:
    """Limit the time of several attempts together.

    Each attempt gets half of the time that is left at its start, so that one slow attempt leaves
    time for the next. The limit is an interval timer with its signal, which works on POSIX in the
    main thread only; elsewhere there is no limit.
    """

    def __init__(self, seconds: float):
        """Start the clock; `seconds` are for all attempts together."""
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether less than a hundredth of the time is left."""
        return self._end - time.monotonic() < 0.01 * self.seconds

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Raise `OutOfTime` inside the context when half of the time left has passed."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not (hasattr(signal, "setitimer") and in_main_thread):
            yield
            return

        def stop(number: int, frame: Any) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max((self._end - time.monotonic()) / 2, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
