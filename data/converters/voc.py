"""Pascal VOC: an XML for each image, also as labelImg and other tools write it.

Corners are pixels that belong to the box and count from 1: `xmin` 1 is the left edge of the image.
Everingham et al., "The PASCAL VOC Challenge", IJCV 2010, and the development kit.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from tqdm import tqdm

from data.converters.base import (
    CONVERTERS,
    BadRecordError,
    Converter,
    Record,
    boxes_of,
    child_folder,
    files_by_stem,
    folders_below,
    images_by_stem,
    read_bounded,
    split_of,
)
from data.files import IMAGE_SUFFIXES
from data.parallel import batches, in_order
from data.safe_xml import BadXmlError, parse_xml
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
FEW = 1000  # files that are read by one process and without a bar
PART = 64  # files that a process takes at a time


class Item(NamedTuple):
    """An image with its XML."""

    image: Path
    xml: Path


class Objects(NamedTuple):
    """What an XML says; `problem` where it cannot be used."""

    boxes: list[tuple[str, float, float, float, float]]  # class name, xmin, ymin, xmax, ymax
    difficult: int
    size: tuple[int, int] | None
    problem: str = ""


@CONVERTERS.register("voc")
class Voc(Converter):
    """Reader of `Annotations`, `JPEGImages` and `ImageSets/Main`, or of XMLs beside the images."""

    options = ("difficult", "zero_based")

    def __init__(self, source: Path, opt: ConvertOptions):
        super().__init__(source, opt)
        found: dict[str, list[Item]] = {}
        for folder in folders_below(source):
            for split, items in _splits_of(folder):
                found.setdefault(split, []).extend(items)
        if not found:
            raise UserError(
                f"{source}: no XMLs of Pascal VOC: expected Annotations/ and JPEGImages/ here or in"
                " VOC2007/ and the like, or XMLs beside the images"
            )
        self.splits = self.choose_splits(found)
        self._objects = self._read_all()
        self.names = self._class_names()
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._note_zeros()

    def read(self, item: Item) -> Record:
        """Return the objects of an image."""
        found = self._objects[item.xml]
        if found.problem:
            raise BadRecordError(found.problem)
        shift = 0 if self.opt.zero_based else 1
        rows = [(self._numbers[n], x1 - shift, y1 - shift, *high) for n, x1, y1, *high in found[0]]
        dropped = Counter({"difficult": found.difficult} if found.difficult else {})
        return Record(item.image, boxes_of(rows), dropped, found.size)

    def place(self, item: Item) -> str:
        """Return the XML of an image."""
        return str(item.xml)

    def _read_all(self) -> dict[Path, Objects]:
        """Return the objects of every XML, read before the classes are known."""
        files = list(dict.fromkeys(i.xml for items in self.splits.values() for i in items))
        few = len(files) < FEW
        parts = in_order(lambda: batches(files, PART), self._read_part, 1 if few else 0)
        found: list[Objects] = []
        with tqdm(None, "Reading XML", len(files), leave=False, disable=few) as bar:
            for part in parts:
                found += part
                bar.update(len(part))
        return dict(zip(files, found, strict=True))

    def _read_part(self, files: list[Path]) -> list[Objects]:
        """Return the objects of some XMLs."""
        return [_objects(file, self.opt.difficult) for file in files]

    def _class_names(self) -> list[str]:
        """Return the names of the classes: PASCAL's in their order, or else all found, sorted."""
        found = {box[0] for objects in self._objects.values() for box in objects.boxes}
        return list(NAMES) if found <= set(NAMES) else sorted(found)

    def _note_zeros(self) -> None:
        """Note where pixels seem to count from 0."""
        corners = (box for objects in self._objects.values() for box in objects.boxes)
        zeros = sum(box[1] == 0 or box[2] == 0 for box in corners)
        if zeros and not self.opt.zero_based:
            self.notes.append(
                f"{zeros} boxes begin at pixel 0, but VOC counts from 1: if the tool that wrote"
                " them counts from 0, add --zero-based"
            )


def _splits_of(folder: Path) -> Iterator[tuple[str, list[Item]]]:
    """Yield the splits of a folder of VOC with their images; none where it is no such folder."""
    texts = child_folder(folder, "annotations")
    place = (child_folder(folder, "jpegimages", "images") or texts) if texts else folder
    xmls = files_by_stem(texts or folder, ".xml")
    if place is None or not xmls or folder.name.lower() == "annotations":
        return
    images = images_by_stem(place)
    items = {s: Item(images.get(s, place / f"{s}.jpg"), xml) for s, xml in xmls.items()}
    lists = sorted((folder / "ImageSets" / "Main").glob("*.txt"))
    named = [file for file in lists if "_" not in file.stem]  # those of one class: car_train.txt
    for file in named:
        for stem in (stems := _stems(file, items)):
            if stem not in items:  # is reported as left out, because its XML cannot be read
                image = images.get(stem, place / f"{stem}.jpg")
                items[stem] = Item(image, (texts or folder) / f"{stem}.xml")
        yield file.stem, [items[stem] for stem in stems]
    if not named:
        yield split_of(folder.name) or "train", list(items.values())


def _stems(file: Path, known: Collection[str]) -> list[str]:
    """Return the stems that an image set lists; the suffix of an image is left out.

    Raises:
        UserError: The file cannot be read, or is no text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if "\0" in text:
        raise UserError(f"{file}: is no list of images: it has a NUL character")
    lines = [line.strip() for line in text.splitlines()]
    return [line if line in known else _without_suffix(line) for line in lines if line]


def _without_suffix(name: str) -> str:
    """Return the name of an image without its suffix; other names stay as they are."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _objects(file: Path, difficult: bool) -> Objects:
    """Return the objects of an XML; with `difficult` those marked so too."""
    try:
        root = parse_xml(read_bounded(file))
        things = root.findall("object")
        boxes = [_box(thing) for thing in things if difficult or not _is_difficult(thing)]
        return Objects(boxes, len(things) - len(boxes), _size(root))
    except (BadXmlError, BadRecordError) as error:
        return Objects([], 0, None, str(error))


def _is_difficult(thing: Element) -> bool:
    """Tell whether an object is marked difficult."""
    return (thing.findtext("difficult") or "0").strip() == "1"


def _box(thing: Element) -> tuple[str, float, float, float, float]:
    """Return class name, xmin, ymin, xmax and ymax of an object.

    Raises:
        BadRecordError: A part is missing or no number.
    """
    name = (thing.findtext("name") or "").strip()
    box = thing.find("bndbox")
    if not name or box is None:
        raise BadRecordError("an object without name or bndbox")
    try:
        x1, y1, x2, y2 = (float(box.findtext(k) or "") for k in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise BadRecordError(f"bndbox of {name[:40]}: not four numbers") from None
    return name, x1, y1, x2, y2


def _size(root: Element) -> tuple[int, int] | None:
    """Return width and height that an XML states; None where they are missing, 0 or no numbers."""
    try:
        width, height = (int(float(root.findtext(f"size/{k}") or 0)) for k in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
