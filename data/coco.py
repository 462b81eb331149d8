"""Read COCO's JSON of instances: images, categories, and boxes as left, top, width, height.

Outlines (polygons and run lengths) are not read, objects marked `iscrowd` are left out, and ids of
categories may have gaps. Lin et al., "Microsoft COCO", ECCV 2014; cocodataset.org, "Data format".
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.json_stream import read_lists
from utils.errors import UserError, brief
from utils.yaml_files import is_text

LISTS = ("images", "annotations", "categories")
LARGE = 20 * 2**20  # bytes of a file that is read with a bar
CROWD = "crowd"
UNKNOWN_CATEGORY = "category id that is not in categories"
NO_BOX = "without a box"


class CocoImage(NamedTuple):
    """An image of the list."""

    file_name: str
    size: tuple[int, int] | None  # width and height in pixels; None where they are not stated


@dataclass(frozen=True)
class CocoFile:
    """Content of a file.

    Attributes:
        file: The JSON.
        names: Names of the categories by their ids, each once.
        images: Images in the order of the file.
        boxes: (n, 5) float64: class, x1, y1, x2, y2 in pixels, sorted by image.
        starts: (images + 1,): boxes of image i are `boxes[starts[i] : starts[i + 1]]`.
        dropped: Number of objects without a box to use by reason, for images that have some.
        problems: Reason why an image cannot be used, by number of the image.
        strays: Number of objects whose image is not in the list.
    """

    file: Path
    names: list[str]
    images: list[CocoImage]
    boxes: np.ndarray
    starts: np.ndarray
    dropped: dict[int, dict[str, int]]
    problems: dict[int, str]
    strays: int

    def boxes_of(self, number: int) -> np.ndarray:
        """Return the boxes of an image, (n, 5)."""
        return self.boxes[self.starts[number] : self.starts[number + 1]]

    def paths(self, folder: Path) -> list[Path]:
        """Return the files of the images in a folder, which need not exist.

        The names may begin with a folder that is not there, as `train2017/1.jpg` in `train2017`.
        """
        safe = [i for i in range(len(self.images)) if i not in self.problems]
        first = self.images[safe[0]].file_name if safe else ""
        flat = not (folder / first).exists() and (folder / PurePosixPath(first).name).exists()
        names = (image.file_name for image in self.images)
        return [folder / (PurePosixPath(name).name if flat else name) for name in names]


@dataclass
class _Builder:
    """What has been read of a file so far."""

    file: Path
    images: list[CocoImage] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)  # number of the image, by its id
    problems: dict[int, str] = field(default_factory=dict)
    categories: dict[Any, str] = field(default_factory=dict)  # name by id
    image_ids: list[Any] = field(default_factory=list)  # one for each object, as the others below
    category_ids: list[Any] = field(default_factory=list)
    corners: array = field(default_factory=lambda: array("d"))
    crowds: bytearray = field(default_factory=bytearray)

    def add(self, key: str, element: Any) -> None:
        """Add an element of one of the lists.

        Raises:
            UserError: It has no id, or not the parts that it needs.
        """
        if not isinstance(element, dict):
            raise UserError(f"{self.file}: {key}: expected objects, found {brief(element)}")
        adders: dict[str, Callable[[dict[str, Any]], None]] = {
            "images": self._add_image,
            "annotations": self._add_object,
            "categories": self._add_category,
        }
        adders[key](element)

    def _add_image(self, element: dict[str, Any]) -> None:
        name, key = element.get("file_name"), self._id(element, "id", "images")
        if not isinstance(name, str) or not name:
            raise UserError(f"{self.file}: images: {brief(key)} has no file_name")
        if key in self.numbers:
            raise UserError(f"{self.file}: images: the id {brief(key)} is there twice")
        number = self.numbers[key] = len(self.images)
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not is_text(name):
            self.problems[number] = "its file_name leads out of the folder of the images"
            name = f"image-{number}"
        width, height = element.get("width"), element.get("height")
        size = None
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            size = int(width), int(height)
        self.images.append(CocoImage(name, size))

    def _add_category(self, element: dict[str, Any]) -> None:
        name, key = element.get("name"), self._id(element, "id", "categories")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{self.file}: categories: {brief(key)} has no name")
        self.categories[key] = name.strip()

    def _add_object(self, element: dict[str, Any]) -> None:
        self.image_ids.append(self._id(element, "image_id", "annotations"))
        self.category_ids.append(self._id(element, "category_id", "annotations"))
        self.crowds.append(element.get("iscrowd", 0) in (1, True))
        self.corners.extend(_corners(element.get("bbox")))

    def _id(self, element: dict[str, Any], key: str, where: str) -> Any:
        """Return an id, which is a number or a text."""
        value = element.get(key)
        if type(value) not in (int, str):
            raise UserError(f"{self.file}: {where}: {key}: {brief(value)} is no id")
        return value

    def finish(self) -> CocoFile:
        """Return the content, objects sorted by image."""
        if not self.images:
            raise UserError(f"{self.file}: has no images")
        if not self.categories:
            raise UserError(f"{self.file}: has no categories")
        names, classes = _classes(self.categories)
        kinds = np.array([classes.get(i, -1) for i in self.category_ids], np.int64)
        owners = np.array([self.numbers.get(i, -1) for i in self.image_ids], np.int64)
        corners = np.frombuffer(self.corners, np.float64).reshape(-1, 4)
        crowds = np.frombuffer(self.crowds, np.uint8).astype(bool)
        empty = np.isnan(corners).all(1)
        reasons = {CROWD: crowds, UNKNOWN_CATEGORY: ~crowds & (kinds < 0)}
        reasons[NO_BOX] = ~crowds & (kinds >= 0) & empty
        used = (owners >= 0) & ~np.any(list(reasons.values()), axis=0)
        for number in owners[used & ~np.isfinite(corners).all(1)].tolist():
            self.problems.setdefault(number, "a bbox that is not four finite numbers")
        _note_twins(self.images, self.problems)
        order = np.flatnonzero(used)[np.argsort(owners[used], kind="stable")]
        boxes = np.column_stack([kinds, corners])[order]
        boxes[:, 3:] += boxes[:, 1:3]
        starts = np.searchsorted(owners[order], np.arange(len(self.images) + 1))
        dropped = _by_image({why: owners[found & (owners >= 0)] for why, found in reasons.items()})
        strays = int((owners < 0).sum())
        return CocoFile(
            self.file, names, self.images, boxes, starts, dropped, self.problems, strays
        )


def read_coco(file: Path) -> CocoFile:
    """Return the content of a file.

    Raises:
        UserError: The file is missing, broken, or no COCO file of instances.
    """
    builder = _Builder(file)
    size = file.stat().st_size if file.is_file() else 0
    title = f"Reading {file.name}"
    with tqdm(None, title, size, leave=False, disable=size < LARGE, unit="B", unit_scale=1) as bar:
        for key, element in read_lists(file, LISTS, bar.update):
            builder.add(key, element)
    return builder.finish()


def _corners(box: Any) -> tuple[float, ...]:
    """Return left, top, width, height; all NaN for no box, infinite for a broken one."""
    if box is None or box == []:
        return (np.nan,) * 4
    if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box):
        return tuple(v if abs(v) < 1e9 else np.inf for v in box)
    return (np.inf,) * 4


def _classes(categories: dict[Any, str]) -> tuple[list[str], dict[Any, int]]:
    """Return the names sorted by id, each once, and the place of each id's name in that list."""
    ids = sorted(categories, key=lambda key: (isinstance(key, str), key))
    names = list(dict.fromkeys(categories[key] for key in ids))
    return names, {key: names.index(categories[key]) for key in ids}


def _note_twins(images: list[CocoImage], problems: dict[int, str]) -> None:
    """Note images whose file is in the list more than once: one of them lacks objects."""
    places: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        places.setdefault(image.file_name, []).append(number)
    for numbers in places.values():
        for number in numbers if len(numbers) > 1 else ():
            problems.setdefault(number, "its file_name is in the list of images twice")


def _by_image(reasons: dict[str, np.ndarray]) -> dict[int, dict[str, int]]:
    """Return the number of objects by reason for each image, from the images of each reason."""
    found: dict[int, dict[str, int]] = {}
    for reason, owners in reasons.items():
        for number, count in zip(*np.unique(owners, return_counts=True), strict=True):
            found.setdefault(int(number), {})[reason] = int(count)
    return found
