"""Find images and labels in folders and list files, and the user's cache folder."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from utils.errors import UserError
from utils.log import LOGGER

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
OTHER_IMAGES = frozenset(
    {".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".tga"}
)
"""Suffixes of images that are not read: they are counted and named."""
NO_FILE = (-1, -1)  # stamp of a file that does not exist


def list_images(entries: Iterable[Path]) -> list[Path]:
    """Return every image below the folders and in the list files, sorted, each once.

    A list file has one image a line, absolute or relative to the list's folder first, then to the
    working directory. Missing images of a list are kept: the scan reports them.

    Args:
        entries: Folders, list files and single images.

    Raises:
        UserError: Where an entry is missing or no image is found.
    """
    entries = list(entries)
    found: list[Path] = []
    for entry in entries:
        if entry.is_dir():
            found += files_below(entry, IMAGE_SUFFIXES)
        elif entry.is_file() and entry.suffix.lower() not in IMAGE_SUFFIXES:
            found += _read_list(entry)
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError(f"{entry}: no such folder or list of images")
    if not found:
        raise UserError(
            f"{', '.join(map(str, entries))}: no images found (looked for"
            f" {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return sorted(set(found))


def files_below(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Yield the files with these suffixes below a folder.

    Each folder counts once, however many links lead to it. Linked folders count too; `rglob` leaves
    them out. Images of other kinds are counted and named.
    """
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        kinds = {name: Path(name).suffix.lower() for name in names}
        others = [name for name, kind in kinds.items() if kind in OTHER_IMAGES - suffixes]
        if others:
            LOGGER.warning(
                f"{place}: {len(others)} images of other kinds are passed over, the first:"
                f" {min(others)}; convert them to .png or .jpg"
            )
        yield from (Path(place, name) for name, kind in kinds.items() if kind in suffixes)


def read_list_lines(file: Path) -> list[str]:
    """Return the lines of a list file without those that are empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file}: neither an image nor a text list of images") from None
    return [line.strip() for line in lines if line.strip()]


def _read_list(file: Path) -> list[Path]:
    """Return the images that a list file names."""
    return [_existing(file.parent, line) for line in read_list_lines(file)]


def _existing(folder: Path, line: str) -> Path:
    """Return the path of a list's line: beside the list, or from the working directory."""
    beside = folder / line
    return Path(line).absolute() if not beside.exists() and Path(line).exists() else beside


def label_path(image: Path) -> Path:
    """Return the label file of an image.

    The last folder named `images` becomes `labels`; without such a folder the label file lies
    beside the image.
    """
    return _label_folder(image.parent) / f"{image.stem}.txt"


def label_paths(images: Iterable[str]) -> list[str]:
    """Return the label files of many images as `label_path` does, ten times as quickly."""
    folders: dict[str, str] = {}
    found = []
    for image in images:
        name = image[image.rfind("/") + 1 :]
        place = image[: len(image) - len(name)]
        if place not in folders:
            folder = str(_label_folder(Path(place)))
            folders[place] = "" if folder == "." else f"{folder}/".replace("//", "/")
        dot = name.rfind(".")
        stem = name[:dot] if 0 < dot < len(name) - 1 else name
        found.append(f"{folders[place]}{stem}.txt")
    return found


@lru_cache(maxsize=256)  # a set has few folders and many images
def _label_folder(folder: Path) -> Path:
    """Return the folder of the labels of the images in a folder."""
    parts = list(folder.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def user_cache_folder() -> Path:
    """Return the user's folder for caches, which keeps them out of the data folders."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "yolo-compress"


def short_hash(text: str) -> str:
    """Return ten hex digits that identify a text, the same on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def stamp(path: Path | str) -> tuple[int, int]:
    """Return size (bytes) and modification time (ns) of a file; `NO_FILE` where there is none.

    A changed stamp tells that the file changed. A link to nothing is no missing file. The size is
    negative for whatever is no regular file.
    """
    try:
        info = os.stat(path)  # noqa: PTH116  a set has many files, as texts of their paths
    except OSError:
        return (-2, -2) if Path(path).is_symlink() else NO_FILE
    if not stat.S_ISREG(info.st_mode):
        return (-3, info.st_mtime_ns)
    return info.st_size, info.st_mtime_ns
