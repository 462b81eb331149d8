"""Ctrl-C while a script is still importing its libraries. Standard library only."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPORTING = "<frozen importlib._bootstrap>"  # file of the frames that import a module
SIGINT_CODE = 130  # what a shell reports for a program that SIGINT ended


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """End the program at once where SIGINT arrives during an import, with one line and code 130.

    An exception would be swallowed by libraries that catch every error of their imports, or come
    out as an error of theirs with a traceback. Elsewhere KeyboardInterrupt is raised, as usual. A
    handler that the script sets itself, such as `GracefulStop`, takes precedence.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT."""
    if not is_importing(frame):
        raise KeyboardInterrupt
    say_interrupted("while the program was starting; nothing was changed")
    os._exit(SIGINT_CODE)


def say_interrupted(when: str) -> None:
    """Print one line about an interrupt, on the first rank only."""
    sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":
        print(f"interrupted {when}".rstrip(), file=sys.stderr, flush=True)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame, or one that called it, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False
