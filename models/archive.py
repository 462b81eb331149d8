"""Look at a checkpoint before anything of it is read: its kind, its zip directory, its sizes.

A damaged or hostile directory could claim sizes that fill the memory, or raise any error while it
is read. `torch.save` writes members as they are, so none may be larger than the file.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.files import why_not_regular

ARCHIVE_ERRORS = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, MemoryError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""Errors that the standard library raises for a damaged zip."""
ENCRYPTED = 1  # bit of a member's flags


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip, as torch has written since 1.6.

    Raises:
        UserError: It is no regular file.
    """
    if reason := why_not_regular(path):
        raise UserError(f"{path}: {reason}")
    try:
        return zipfile.is_zipfile(path)
    except ARCHIVE_ERRORS:
        return False


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose directory has been checked.

    Raises:
        UserError: The directory is damaged, or a member is compressed, encrypted or larger than
            the file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{path}: cannot be read, its zip directory is damaged: {one_line(error)}"
        ) from None
    with archive:
        _check_members(path, archive)
        yield archive


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise `UserError` for members that torch does not write, or whose sizes cannot be true."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
            raise UserError(
                f"{path}: no checkpoint: a member of this zip is compressed or encrypted"
            )
    claimed = sum(max(m.file_size, m.compress_size) for m in archive.infolist())
    if claimed > path.stat().st_size:
        raise UserError(f"{path}: damaged: its members claim to be larger than the file")


def one_line(error: BaseException) -> str:
    """Return the text of an error in one line of at most 200 characters, or its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
