"""One logger for console and `log.txt`; only the main process logs below errors."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOGGER = logging.getLogger("yolo")
FILE_ONLY = "file_only"  # attribute of records that the console does not show


class _TqdmSafeHandler(logging.StreamHandler):
    """Handler that keeps tqdm bars whole and looks stdout up at each line (tests replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if not getattr(record, FILE_ONLY, False):
            line = printable(self.format(record), sys.stdout.encoding)
            tqdm.write(line, file=sys.stdout)


def printable(text: str, encoding: str | None) -> str:
    """Return text with escapes for what a stream cannot write, as in names of files."""
    name = encoding or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)


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


def log_to_file(text: str) -> None:
    """Log a line to `log.txt` alone: the console shows the same in a bar."""
    LOGGER.info(text, extra={FILE_ONLY: True})


@cache
def deprecated(old: str, new: str) -> None:
    """Log one line, the first time only, that `old` is now called `new`."""
    LOGGER.warning(f"{old}: old name, still understood; write {new}")


class _RunLog(logging.FileHandler):
    """The file `log.txt` of a run, which goes on where the disk refuses the file."""

    _refused = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  a name of logging
        """Warn of the first line that the disk refuses; the program's own errors are printed."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._warn(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whose last lines the disk may refuse."""
        try:
            super().close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            reason = "disk full" if full else error.strerror or str(error)
            LOGGER.warning(f"{self.baseFilename}: lines are missing: {reason}; the run goes on")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append everything that is logged inside the block to the file `path` too."""
    handler = _RunLog(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


setup_logging()
