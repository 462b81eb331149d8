"""Make a folder whole or not at all, and replace one only that is as this module left it.

The folder is made under another name beside its place and renamed at last. A manifest in it has
size and time of every file, so that files which a user added or changed are noticed.
"""

import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import why_not_regular, write_atomic

MANIFEST = "manifest.json"
TOOL = "yolo-compress convert"
LOCK = ".lock"
YOUNG = 60.0  # seconds; a workshop without a lock may have been made just now
CACHE_SUFFIX = ".cache.npz"  # of the label scans of data/cache.py, which may appear in the folder


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Make a temporary folder beside the place of another one; delete it at the end.

    Those that killed programs have left are deleted first.
    """
    prefix = f".{folder.name}-converting-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        with (place / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path) -> bool:
    """Tell whether no living program works in a workshop."""
    try:
        with (place / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        try:
            return time.time() - place.stat().st_mtime > YOUNG
        except OSError:
            return False
    except OSError:
        return False


def seal(fresh: Path, digest: str, facts: dict[str, Any]) -> None:
    """Write the manifest of a complete folder, the last of its files, once the disk has them all.

    Args:
        fresh: Folder that is complete.
        digest: Text that tells the content from another one.
        facts: Further plain data to store.
    """
    os.sync()
    content = {"tool": TOOL, "digest": digest, **facts, "files": _stamps(fresh)}
    write_atomic(fresh / MANIFEST, json.dumps(content, indent=0))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that `seal` made; None for every other folder."""
    file = folder / MANIFEST
    if why_not_regular(file):
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and found.get("tool") == TOOL
    return found if ours and isinstance(found.get("files"), dict) else None


def refuse_what_is_not_ours(folder: Path) -> None:
    """Raise `UserError` where a folder holds anything that a conversion has not put there."""
    if not folder.exists() and not folder.is_symlink():
        return
    advice = "move it away, or choose another --out"
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: is a file or a link, not a folder; {advice}")
    if not any(folder.iterdir()):
        return
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: holds files that no conversion has made; {advice}")
    if changed := _difference(folder, manifest):
        raise UserError(f"{folder}: {changed} was added, changed or removed since; {advice}")


def publish(fresh: Path, folder: Path) -> bool:
    """Rename a sealed folder to its place; return False where the same content is there already.

    Raises:
        UserError: The folder holds files that no conversion has made.
    """
    refuse_what_is_not_ours(folder)
    old, new = read_manifest(folder), read_manifest(fresh)
    assert new is not None
    if old is not None and old.get("digest") == new["digest"]:
        return False
    outdated = fresh.with_name("outdated")
    if folder.exists():
        folder.rename(outdated)
    try:
        fresh.rename(folder)
    except OSError:
        if outdated.exists():
            outdated.rename(folder)
        raise
    return True


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size (bytes) and time (ns) of each file below a folder, by its path from there."""
    found: dict[str, list[int]] = {}
    pending, start = [folder], len(str(folder)) + 1
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                else:
                    info = entry.stat(follow_symlinks=False)
                    found[entry.path[start:]] = [info.st_size, info.st_mtime_ns]
    return found


def _difference(folder: Path, manifest: dict[str, Any]) -> str:
    """Return a file that differs from the manifest; "" where none does."""
    found, known = _stamps(folder), manifest["files"]
    names = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
    return next((name for name in names if not _may_appear(name)), "")


def _may_appear(name: str) -> bool:
    """Tell whether a file may be there that the manifest lacks: itself, and caches of labels."""
    return name == MANIFEST or (name.startswith("labels/") and name.endswith(CACHE_SUFFIX))
