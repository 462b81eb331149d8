"""One logger for console and `log.txt`. Only the main process speaks."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOGGER = logging.getLogger("yolo")


class _TqdmSafeHandler(logging.StreamHandler):
    """Looks stdout up at each line (tests replace it) and keeps tqdm bars whole."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging() -> None:
    """Console output for the main process, warnings only for the other ranks.

    Safe to call twice.
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
    """Append everything that is logged inside to `path` too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


setup_logging()
