"""Write files and folders that take their names only when they are whole and verified."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.metadata_file import foreign_entries
from utils.errors import UserError, brief
from utils.files import StorageError, refusal


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder beside `path`; rename after the block.

    Where the block fails, an earlier file or folder under the name stays as it was, and nothing new
    is left.

    Args:
        path: File or folder to make.

    Raises:
        UserError: Something that export.py did not write has the name; see `check_place`.
        StorageError: The disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {refusal(error)}") from error
    try:
        yield folder / path.name
        _take_name(folder / path.name, path, folder)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {refusal(error)}; an earlier one is untouched"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_place(path: Path, folder: bool) -> None:
    """Refuse to write where something stands that export.py would not put back.

    Args:
        path: File or folder to make.
        folder: Whether it is a folder.

    Raises:
        UserError: A folder stands in the way of a file, a file in that of a folder, or a folder
            holds files that export.py did not write.
    """
    if not os.path.lexists(path):
        return
    right = "nothing is changed; move it away or give another --output-dir"
    if folder and not path.is_dir():
        raise UserError(f"{path}: is in the way of a folder that export.py writes; {right}")
    if not folder and path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{path}: is {what}, in the way of the file that export.py writes; {right}")
    if folder and (names := foreign_entries(path)):
        more = f" and {len(names) - 1} more" if names[1:] else ""
        raise UserError(
            f"{path}: is in the way: it holds {brief(names[0])}{more}, not written by export.py;"
            f" {right}"
        )


def _take_name(new: Path, path: Path, folder: Path) -> None:
    """Move a file or folder to its name; an earlier one of that name makes place."""
    check_place(path, new.is_dir())
    for file in [new] if new.is_file() else sorted(new.rglob("*")):
        _sync(file)
    if new.is_file():
        new.replace(path)
        return
    old = folder / "earlier"
    if path.exists():
        path.replace(old)
    try:
        new.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise


def _sync(file: Path) -> None:
    """Wait until the disk has a file."""
    if file.is_file():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
