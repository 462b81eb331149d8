"""One logger for console and `log.txt`; only the main process logs below errors."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOGGER = logging.getLogger("yolo")


class _TqdmSafeHandler(logging.StreamHandler):
    """Handler that keeps tqdm bars whole and looks stdout up at each line (tests replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging() -> None:
    """Set up console output: everything on the main process, errors only on the other ranks.

    A second call does nothing.
    """
    if LOGGER.handlers:
        return
    handler = _TqdmSafeHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


@cache
def deprecated(old: str, new: str) -> None:
    """Log one line, the first time only, that `old` is now called `new`."""
    LOGGER.warning(f"{old}: old name, still understood; write {new}")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append everything that is logged inside the block to the file `path` too."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


setup_logging()
