"""A limit on how long something may take that cannot be asked to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(Exception):
    """Raised inside `Deadline.attempt` when its time is over."""


class Deadline:
    """`seconds` for several attempts together; none gets more than half of what is left, so that
    one cannot starve the rest.

    Works through an interval timer and its signal: on POSIX, in the main thread. Elsewhere there is
    no limit.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether less than a hundredth of the time is left."""
        return self._end - time.monotonic() < 0.01 * self.seconds

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """`OutOfTime` inside where it takes too long."""
        if not (
            hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        ):
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
