"""COCO: one JSON of instances for each split, as `data.coco` reads it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.coco import CocoFile, read_coco
from data.converters.base import (
    CONVERTERS,
    BadRecordError,
    Converter,
    Record,
    folders_below,
    split_of,
)
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions

OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic")
"""Beginnings of the names of COCO's files that hold no instances."""


class Item(NamedTuple):
    """An image: number of its split, number in the file, and path."""

    split: int
    number: int
    path: Path


@CONVERTERS.register("coco")
class Coco(Converter):
    """Reader of `annotations/instances_train2017.json` and the like."""

    def __init__(self, source: Path, opt: ConvertOptions):
        super().__init__(source, opt)
        chosen = self.choose_splits(_files(source, opt))
        if not chosen:
            raise UserError(
                f"{source}: no JSON of COCO whose name speaks of train, val or test; expected"
                " annotations/instances_train2017.json or the like, or --split"
                " train=annotations/my.json"
            )
        self.contents = [read_coco(file) for file in chosen.values()]
        # classes of several files are counted through by the order of their ids
        self.names = list(dict.fromkeys(n for found in self.contents for n in found.names))
        self._places = [
            np.array([self.names.index(name) for name in found.names]) for found in self.contents
        ]
        for number, (split, content) in enumerate(zip(chosen, self.contents, strict=True)):
            theirs = opt.splits.get(split, split)
            paths = content.paths(image_folder(source, content, theirs))
            self.splits[split] = [Item(number, i, path) for i, path in enumerate(paths)]
            if content.strays:
                self.notes.append(f"{content.file}: {content.strays} objects of unknown images")

    def read(self, item: Item) -> Record:
        """Return the objects of an image."""
        content = self.contents[item.split]
        if problem := content.problems.get(item.number):
            raise BadRecordError(problem)
        boxes = content.boxes_of(item.number).copy()
        boxes[:, 0] = self._places[item.split][boxes[:, 0].astype(int)]
        dropped = Counter(content.dropped.get(item.number, {}))
        return Record(item.path, boxes, dropped, content.images[item.number].size)

    def place(self, item: Item) -> str:
        """Return the image."""
        return str(item.path)


def _files(source: Path, opt: ConvertOptions) -> dict[str, Path]:
    """Return the JSON of each split by the source's name of the split.

    A name of `--split train=NAME` may be a file, relative to the source.

    Raises:
        UserError: Two files seem to be of one split.
    """
    given = {name: source / name for name in opt.splits.values() if name.endswith(".json")}
    found: dict[str, Path] = {name: file for name, file in given.items() if file.is_file()}
    for file in _candidates(source):
        split = split_of(file.stem) or split_of(file.parent.name)
        if split is None or split in given:
            continue
        if split in found and split in (opt.splits.values() or (split,)):
            raise UserError(
                f"{source}: {found[split]} and {file} both seem to be of '{split}'; say which by"
                f" --split {split}={file.relative_to(source)}"
            )
        found[split] = file
    return found


def _candidates(source: Path) -> Iterator[Path]:
    """Yield the JSON files in a folder and in those right below it, of instances if some are."""
    files = [file for folder in folders_below(source, 1) for file in sorted(folder.glob("*.json"))]
    files = [file for file in files if not file.stem.startswith(OTHER_TASKS)]
    instances = [file for file in files if file.stem.startswith("instances_")]
    yield from instances or files


def image_folder(source: Path, content: CocoFile, split: str) -> Path:
    """Return the folder that holds the images of a file.

    Raises:
        UserError: None of the usual places has the first images.
    """
    stem = content.file.stem.removeprefix("instances_")
    words = list(dict.fromkeys([stem, split, split_of(stem) or split]))
    places = [source / word for word in words] + [source / "images" / word for word in words]
    places += [content.file.parent, source / "images", source]
    for place in places:
        if any(path.is_file() for path in content.paths(place)[:20]):
            return place
    raise UserError(
        f"{content.file}: its first images, such as {content.images[0].file_name}, are in none of"
        f" {', '.join(map(str, dict.fromkeys(places)))}; put or link them into one of these"
    )
