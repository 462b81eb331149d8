"""Read a split from COCO's JSON where it lies: its images, and the labels of each, without copies.

The labels are those that convert.py would write, to the bit. What was read of a JSON is kept in the
user's cache folder, since a large one takes a minute to read.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data.coco import CROWD, CocoFile, CocoImage, read_coco
from data.converters.lines import NOT_ASKED, label_texts
from data.files import short_hash, stamp, user_cache_folder
from data.labels import Finding, parse_labels
from utils.errors import UserError, suggest
from utils.files import atomic_open
from utils.log import LOGGER

VERSION = 1  # of the files in the cache
CACHE_ERRORS = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile)
"""Errors that a missing or damaged file of the cache raises."""
NO_LABELS = np.zeros((0, 5), np.float32)


@dataclass(frozen=True)
class CocoSplit:
    """A split of a data YAML that is COCO's JSON.

    Args:
        annotations: The JSON.
        images: Folder of its images.
        names: Class names of the data set; the categories of these names are used.
    """

    annotations: Path
    images: Path
    names: tuple[str, ...] = field(default=())

    @cached_property
    def content(self) -> CocoFile:
        """Content of the JSON."""
        return cached_content(self.annotations)

    @cached_property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the JSON."""
        return stamp(self.annotations)

    @cached_property
    def cache_file(self) -> Path:
        """File of the scan's cache, beside the JSON."""
        key = short_hash(f"{self.images.absolute()} {self.names}")
        return self.annotations.with_name(f"{self.annotations.stem}.{key}.cache.npz")

    @cached_property
    def numbers(self) -> dict[Path, int]:
        """Number of each image in the JSON."""
        return {path: i for i, path in enumerate(self.content.paths(self.images))}

    def files(self) -> list[Path]:
        """Return the images that the JSON lists, sorted."""
        return sorted(self.numbers)

    @cached_property
    def ids(self) -> np.ndarray:
        """Class of each category; -1 where the data set has none of its name.

        Raises:
            UserError: No category has the name of a class.
        """
        known = self.content.names
        ids = [self.names.index(name) if name in self.names else -1 for name in known]
        missing = [name for name in self.names if name not in known]
        if len(missing) == len(self.names):
            raise UserError(
                f"{self.annotations}: has no category of the names {', '.join(self.names[:5])}"
                f"{suggest(self.names[0], known)} (categories: {', '.join(known[:20])})"
            )
        if missing:
            LOGGER.warning(
                f"{self.annotations}: has no category of the names {', '.join(missing[:10])}"
            )
        return np.array(ids)

    def describe(self) -> None:
        """Log how many objects are left out on purpose: crowds, and classes that are not asked for.

        A warning names objects of images that are not in the list.
        """
        crowds = sum(found.get(CROWD, 0) for found in self.content.dropped.values())
        others = int((self.ids[self.content.boxes[:, 0].astype(int)] < 0).sum())
        if crowds or others:
            LOGGER.info(
                f"{self.annotations}: {crowds} crowds and {others} objects of other classes are"
                " left out"
            )
        if self.content.strays:
            LOGGER.warning(f"{self.annotations}: {self.content.strays} objects of unknown images")

    def labels_of(self, image: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[Finding]]:
        """Return the rows of an image as `parse_labels` does, and what is odd about them.

        Args:
            image: One of `files()`.
            size: Width and height in pixels; (0, 0) for an image that cannot be read.
        """
        number = self.numbers[image]
        if problem := self.content.problems.get(number):
            return NO_LABELS, [Finding(0, problem)]
        stated = self.content.images[number].size
        if 0 in size:
            return NO_LABELS, []
        if stated is not None and stated != size:
            text = f"the JSON is for {stated[0]} x {stated[1]} px, the image has"
            return NO_LABELS, [Finding(0, f"{text} {size[0]} x {size[1]}")]
        made = label_texts([self.content.boxes_of(number)], [size], self.ids)
        rows, findings = parse_labels(made.texts[0], len(self.names))
        assert not findings
        dropped = {**self.content.dropped.get(number, {}), **made.dropped}
        return rows, [
            Finding(0, f"{count} boxes dropped: {reason}", fatal=False)
            for reason, count in dropped.items()
            if reason not in (CROWD, NOT_ASKED)
        ]

    def require_objects(self, split: str, left_out: str, strict: bool) -> None:
        """Refuse a split without any object; warn where not `strict`.

        Raises:
            UserError: Where `strict`.
        """
        message = (
            f"{self.annotations}: none of the images of '{split}' has an object that can be used"
            f" (classes: {', '.join(self.names[:20])}){left_out}"
        )
        if strict:
            raise UserError(message)
        LOGGER.warning(f"{message}; the metrics mean nothing")


def names_of(files: Sequence[Path]) -> list[str]:
    """Return the names of the categories of several JSON files, each once."""
    return list(dict.fromkeys(name for file in files for name in cached_content(file).names))


def cached_content(file: Path) -> CocoFile:
    """Return the content of a JSON, from the memory or the user's cache folder if it is there."""
    return _content(file.absolute(), stamp(file))


@lru_cache(maxsize=8)
def _content(file: Path, when: tuple[int, int]) -> CocoFile:
    """Return the content of a JSON of this size and time."""
    place = user_cache_folder() / "coco" / f"{short_hash(f'{VERSION} {file} {when}')}.npz"
    try:
        return _load(place, file)
    except CACHE_ERRORS:
        content = read_coco(file)
    try:
        _save(place, content)
    except OSError as error:
        LOGGER.warning(f"{error}; {file} is read again next time")
    return content


def _save(place: Path, content: CocoFile) -> None:
    """Write the content of a JSON as plain arrays."""
    head = {
        "names": content.names,
        "images": content.images,
        "dropped": list(content.dropped.items()),
        "problems": list(content.problems.items()),
        "strays": content.strays,
    }
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    with atomic_open(place) as stream:
        np.savez(stream, head=text, boxes=content.boxes, starts=content.starts)


def _load(place: Path, file: Path) -> CocoFile:
    """Return what `_save` wrote; a damaged file raises one of several errors."""
    with np.load(place, allow_pickle=False) as stored:
        head = json.loads(bytes(stored["head"]))
        boxes, starts = stored["boxes"], stored["starts"]
    images = [CocoImage(name, tuple(size) if size else None) for name, size in head["images"]]
    dropped = {number: found for number, found in head["dropped"]}
    problems = {number: reason for number, reason in head["problems"]}
    return CocoFile(file, head["names"], images, boxes, starts, dropped, problems, head["strays"])
