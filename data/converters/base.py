"""The registry of converters, and what each of them has to do.

A converter finds the splits of a data set in its published layout and reads the annotations of one
image at a time. The writer does the rest: sizes of images, clipping, links, texts, lists, YAML.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.files import IMAGE_SUFFIXES
from utils.errors import UserError, suggest
from utils.files import why_not_regular
from utils.options.data.convert import ConvertOptions
from utils.registry import Registry

CONVERTERS = Registry("annotation format")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Words that name the splits in folders and files of published sets."""
MOST_BYTES = 8 * 2**20  # of the annotations of one image; the largest known ones have 0.2


class BadRecordError(ValueError):
    """Annotations of one image that cannot be trusted: the image is left out, with this reason."""


@dataclass
class Record:
    """The annotations of one image.

    Args:
        image: File of the image, which may be missing.
        boxes: (n, 5) float64: class, x1, y1, x2, y2 in pixels; x = 0 is the left edge of the image,
            and x2 the right edge of the box. Boxes may reach out of the image.
        dropped: Number of objects that were left out, by reason.
        size: Width and height in pixels as the annotations state them; None where they do not.
    """

    image: Path
    boxes: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    size: tuple[int, int] | None = None


class Converter(ABC):
    """Reader of one format.

    `__init__(source, opt)` sets the attributes and raises `UserError` where the layout is unknown.

    Attributes:
        options: Options of convert.py that only some formats have, and this one uses.
        notes: Remarks on the data that the user should read after the conversion.
        names: Names of all classes; the class of a box is a place in this list.
        splits: What `read` takes, for each image of a split.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: Path, opt: ConvertOptions):
        self.source, self.opt = source, opt
        self.names: list[str] = []
        self.splits: dict[str, Sequence[Any]] = {}
        self.notes: list[str] = []

    @abstractmethod
    def read(self, item: Any) -> Record:
        """Return the annotations of one image.

        Raises:
            BadRecordError: They cannot be trusted.
        """

    @abstractmethod
    def place(self, item: Any) -> str:
        """Return the file that a reason to leave out an image is about, for the report."""

    def choose_splits(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return what the source has for each split that is asked for, by our name of the split.

        Where none is asked for, those of other names are left out with a note.

        Args:
            found: What the source has, by the source's name of the split.

        Raises:
            UserError: A split that is asked for is not there, or none is and the source calls its
                splits otherwise, so that nothing would be left to train on.
        """
        if not self.opt.splits:
            return self._known_splits(found)
        for theirs in self.opt.splits.values():
            if theirs not in found:
                raise UserError(
                    f"{self.source}: has no split '{theirs}'{suggest(theirs, found)} (found:"
                    f" {_listed(found)})"
                )
        return {ours: found[theirs] for ours, theirs in self.opt.splits.items()}

    def _known_splits(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the splits of the source that have one of our names, and note the others."""
        known = {split: found[split] for split in SPLIT_WORDS if split in found}
        others = [split for split in found if split not in known]
        how = (
            f"--split train=NAME takes a split that the source calls NAME (it has {_listed(found)})"
        )
        if others and "train" not in known:
            raise UserError(f"{self.source}: has no split 'train'; {how}")
        if others:
            self.notes.append(f"splits that were left out: {_listed(others)}; {how}")
        return known


def _listed(names: Iterable[str]) -> str:
    """Return names for a message, sorted, not more than twenty."""
    words = sorted(names)
    return ", ".join(words[:20] + ["..."] * (len(words) > 20)) or "none"


def boxes_of(rows: Iterable[Sequence[float]]) -> np.ndarray:
    """Return rows of class, x1, y1, x2, y2 as an array (n, 5) of float64.

    Raises:
        BadRecordError: A value is no finite number.
    """
    try:
        boxes = np.array(list(rows), np.float64).reshape(-1, 5)
    except OverflowError:  # whole numbers of JSON have no largest one
        raise BadRecordError("a box that is not finite") from None
    if not np.isfinite(boxes).all():
        raise BadRecordError("a box that is not finite")
    return boxes


def read_bounded(path: Path) -> bytes:
    """Return the annotations of one image as bytes.

    Raises:
        BadRecordError: The file is missing, no regular file, or too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        reason = why_not_regular(path) or error.strerror or str(error)
        raise BadRecordError(f"annotations cannot be read: {reason}") from None
    if len(content) > MOST_BYTES:
        raise BadRecordError(f"annotations of more than {MOST_BYTES // 2**20} MB")
    return content


def split_of(name: str) -> str | None:
    """Return which split the name of a folder or file speaks of; None where it is none or several.

    >>> split_of("VisDrone2019-DET-val")
    'val'
    """
    words = set("".join(c if c.isalpha() else " " for c in name.lower()).split())
    found = [split for split, known in SPLIT_WORDS.items() if words & set(known)]
    return found[0] if len(found) == 1 else None


def folders_below(source: Path, depth: int = 2) -> Iterator[Path]:
    """Yield a folder and those below it down to a depth, sorted, links to folders included."""
    yield source
    if depth:
        for path in sorted(source.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from folders_below(path, depth - 1)


def child_folder(folder: Path, *names: str) -> Path | None:
    """Return the first folder inside of another one with one of these names, in any case."""
    lowered = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    return next((lowered[name] for name in names if name in lowered), None)


def images_by_stem(folder: Path, recursive: bool = False) -> dict[str, Path]:
    """Return the images in a folder by the stems of their names; the first one where two agree."""
    found: dict[str, Path] = {}
    for place, below, names in os.walk(folder, followlinks=False):
        below.sort()
        for name in sorted(names):
            stem, dot, suffix = name.rpartition(".")
            if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES:
                found.setdefault(stem, Path(place, name))
        if not recursive:
            break
    return found


def files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder with a suffix by the stems of their names, sorted by name."""
    names = sorted(os.listdir(folder))  # noqa: PTH208  strings sort ten times as quickly as paths
    return {name[: -len(suffix)]: folder / name for name in names if name.endswith(suffix)}
