"""Write files so that a failure never leaves half a file; read those of strangers with care."""

import csv
import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError, brief
from utils.log import LOGGER

LONGEST_NAME, LONGEST_PATH = 255, 3000  # bytes; the path goes behind that of a folder
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
REFUSED = FULL | {errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
"""Errors of a disk that takes no more: a user can mend them, they are no bugs."""
KINDS = "pt|csv|yaml|json|md|txt|png|jpg|jpeg|bmp|webp|tiff?|npz|npy|mp4|avi"
TEMPORARY = re.compile(rf"\..+\.(?i:{KINDS})\.[a-z0-9_]{{8}}\.tmp(\.mp4|\.avi)?")
"""Names of the temporary files of `atomic_open`: 8 random characters, as `mkstemp` draws them.

Those of a video end in its suffix, which tells FFmpeg the format.
"""


class StorageError(UserError, OSError):
    """A file that the disk refuses to take; callers that can do without the file go on."""


def refusal(error: OSError) -> str:
    """Return why a disk refuses a file, in words: `disk full`, or what the system says."""
    return "disk full" if error.errno in FULL else error.strerror or str(error)


@contextmanager
def atomic_open(path: Path, mode: str = "wb", sync: bool = True) -> Iterator[IO]:
    """Open a file that takes its name only once the block has written all of it.

    The block writes a temporary file beside `path`, which replaces `path` after flush and fsync.
    Where the block fails, an earlier file survives and the temporary one is deleted.

    Args:
        path: File to write.
        mode: `wb` for bytes, `w` for text.
        sync: Whether to wait until the disk has the file; without it, a power cut may lose it.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as (descriptor, temporary):
            # the names of files that are not UTF-8 keep their bytes
            encoding, errors = (None, None) if "b" in mode else ("utf-8", "surrogateescape")
            with os.fdopen(descriptor, mode, encoding=encoding, errors=errors) as file:
                # no other process takes the file for a leftover; gone with the descriptor
                _lock(file.fileno())
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~umask())  # mkstemp makes a private file
            temporary.replace(path)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {refusal(error)}; an earlier file is untouched"
        ) from error


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """Make a temporary file beside `path`, and delete it where the block fails."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        yield descriptor, Path(name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lock(descriptor: int) -> bool:
    """Lock a file for its descriptor; return False where another one has the lock.

    A file system without locks counts as "another one has it".
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep_leftovers(folder: Path, name: str = "", seconds: float = 60) -> int:
    """Delete the temporary files that killed programs have left in a folder; return how many.

    Only files under the pattern of `atomic_open`, and never one that a living process writes.

    Args:
        folder: Folder to sweep, not those below it; it may be missing.
        name: Only the temporary files of the file of this name; empty: of any file.
        seconds: Age from which a file counts; a file just made has no lock yet. 0 where nobody else
            writes in the folder.
    """
    found = folder.glob(f".{glob.escape(name) or '*'}.*.tmp*")
    ours = [file for file in found if TEMPORARY.fullmatch(file.name)]
    return sum(_delete_leftover(file, seconds) for file in ours)


def _delete_leftover(file: Path, seconds: float) -> bool:
    """Delete a temporary file of that age unless a process has it locked; return if it is gone."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        young = seconds > 0 and time.time() - os.fstat(descriptor).st_mtime < seconds
        if young or not _lock(descriptor):
            return False
        file.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomic(path: Path, text: str, sync: bool = True) -> None:
    """Write a text file whole or not at all; see `atomic_open`."""
    with atomic_open(path, "w", sync) as file:
        file.write(text)


@contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Go on, with a warning, where the block cannot write a file that a run can do without.

    Pictures, tables that are written anew each epoch: no training ends because of them.
    """
    try:
        yield
    except OSError as error:
        reason = str(error) if isinstance(error, StorageError) else f"{path}: {refusal(error)}"
        LOGGER.warning(f"{reason}; the run goes on without")


def save_picture(path: Path, draw: Callable[[IO[bytes]], object]) -> None:
    """Write a picture whole or not at all, and go on with a warning where the disk refuses it.

    Args:
        path: File of the picture.
        draw: Writes the picture into the open file.
    """
    with dispensable(path), atomic_open(path) as file:
        draw(file)


def write_csv(path: Path, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with its head as CSV, whole or not at all."""
    with atomic_open(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def copy_atomic(source: Path, path: Path) -> None:
    """Copy a file; the copy appears whole or not at all."""
    with source.open("rb") as original, atomic_open(path) as file:
        shutil.copyfileobj(original, file)


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
