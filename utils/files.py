"""Write files so that a failure never leaves half a file; read those of strangers with care."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError, brief

LONGEST_NAME, LONGEST_PATH = 255, 3000  # bytes; the path goes behind that of a folder


@contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that takes its name only once the block has written all of it.

    The block writes a temporary file beside `path`, which replaces `path` after flush and fsync.
    Where the block fails, an earlier file survives and the temporary one is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes a private file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_open(path, "w") as file:
        file.write(text)


def why_not_regular(path: Path) -> str:
    """Return why a path is no regular file, in words for a message; "" for a regular file.

    Links count as what they lead to. Reading a pipe or a device could wait for ever.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # too long a path, no permission; a NUL character
        return getattr(error, "strerror", None) or str(error)
    if stat.S_ISREG(mode):
        return ""
    return "a folder, not a file" if stat.S_ISDIR(mode) else "a pipe or a device, not a file"


def check_path(value: Any, where: str) -> None:
    """Refuse what no file can be called.

    Raises:
        UserError: The value is no path, has a NUL character or is too long; names `where`.
    """
    if not isinstance(value, str | Path):
        raise UserError(f"{where}: {brief(value)} is no path")
    whole = os.fsencode(value)
    longest = max(map(len, whole.split(b"/")))
    if b"\0" in whole or len(whole) > LONGEST_PATH or longest > LONGEST_NAME:
        raise UserError(
            f"{where}: {brief(str(value))} cannot be the path of a file: it is too long, or has a"
            " NUL character"
        )


def read_text(path: Path, most_bytes: int) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: The file is missing, no regular file, larger than `most_bytes` or no text.
    """
    if reason := why_not_regular(path):
        raise UserError(f"{path}: {reason}")
    if (size := path.stat().st_size) > most_bytes:
        raise UserError(
            f"{path}: has {size / 2**20:.0f} MB; such a file has at most {most_bytes / 2**20:.0f}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
