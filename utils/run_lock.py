"""Keep a run folder for one process, so that no two runs mix their results."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.files import refusal, sweep_leftovers
from utils.log import LOGGER

LOCK_FILE = ".run.lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of a file system that knows no locks."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process while the block runs.

    The system drops the lock when the process ends, however it ends, so a killed run blocks nobody.
    The lock is the process's own: data workers, which may outlive it by seconds, do not inherit it.
    Temporary files that killed runs have left in the folder are deleted.

    Args:
        folder: Existing run folder.

    Raises:
        UserError: Another process has the folder, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {refusal(error)}") from error
    try:
        if _acquire(descriptor, folder):
            for place in (folder, folder / "weights"):
                sweep_leftovers(place, seconds=0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> bool:
    """Lock an open file and write down who has it; return False where locks are unknown.

    Raises:
        UserError: Another process has it.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            LOGGER.warning(
                f"{folder}: this file system has no locks: let no other run write there meanwhile"
            )
            return False
        raise UserError(
            f"{folder}: another run is writing there ({_holder(descriptor)}); wait for its end, or"
            " give this one a folder of its own (--name other, without --exist-ok)"
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {refusal(error)}") from error
    return True


def _holder(descriptor: int) -> str:
    """Return what the holder of a lock has written into its file."""
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "a process"
