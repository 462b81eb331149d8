"""VisDrone-DET: a text for each image, eight numbers for each object.

`left,top,width,height,score,category,truncation,occlusion` in pixels. Score 0 and category 0 mark
regions that the benchmark ignores, category 11 other things. Zhu et al., "Detection and Tracking
Meet Drones Challenge", TPAMI 2021; the columns are described in the toolkit of VisDrone-DET.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

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
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions

NAMES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
IGNORED, OTHERS = 0, 11  # categories without a class
NO_CLASS = -1
CLASSES = {float(category): category - 1 for category in range(IGNORED, OTHERS + 1)}
COLUMNS = 8


class Item(NamedTuple):
    """An image with its text."""

    image: Path
    text: Path


@CONVERTERS.register("visdrone")
class VisDrone(Converter):
    """Reader of the folders `images` and `annotations` of each split."""

    options = ("max_truncation", "max_occlusion")

    def __init__(self, source: Path, opt: ConvertOptions):
        super().__init__(source, opt)
        self.names = list(NAMES)
        found: dict[str, list[Item]] = {}
        for folder in folders_below(source):
            if items := _items(folder):
                split = split_of(folder.name) or "train"
                found.setdefault(split, []).extend(items)
        if not found:
            raise UserError(
                f"{source}: no folders of VisDrone-DET: expected images/ and annotations/ here, or"
                " in VisDrone2019-DET-train/, VisDrone2019-DET-val/ and the like"
            )
        self.splits = self.choose_splits(found)

    def read(self, item: Item) -> Record:
        """Return the objects of an image within the limits of truncation and occlusion."""
        rows: list[tuple[float, ...]] = []
        reasons: list[str] = []
        lines = read_bounded(item.text).decode("utf-8-sig", "replace").splitlines()
        for number, line in enumerate(lines, start=1):
            words = line.strip().rstrip(",").split(",")
            try:
                left, top, width, height, score, category, cut, hidden = map(float, words)
                kind = CLASSES[category]
            except (ValueError, KeyError):
                if not line.strip():
                    continue
                raise BadRecordError(f"line {number}: {_mistake(words)}") from None
            if reason := self._reason(kind, score, cut, hidden):
                reasons.append(reason)
            else:
                rows.append((kind, left, top, left + width, top + height))
        return Record(item.image, boxes_of(rows), Counter(reasons))

    def place(self, item: Item) -> str:
        """Return the text of an image."""
        return str(item.text)

    def _reason(self, kind: int, score: float, truncation: float, occlusion: float) -> str:
        """Return why an object is left out; empty for one that stays."""
        if kind == NO_CLASS or score == 0:
            return "ignored region"
        if kind == len(NAMES):
            return "category others"
        if truncation > self.opt.max_truncation:
            return f"truncation above {self.opt.max_truncation}"
        if occlusion > self.opt.max_occlusion:
            return f"occlusion above {self.opt.max_occlusion}"
        return ""


def _items(folder: Path) -> list[Item]:
    """Return the annotated images of a split's folder; none where it is no such folder."""
    images, texts = child_folder(folder, "images"), child_folder(folder, "annotations")
    if images is None or texts is None:
        return []
    known = images_by_stem(images)
    return [
        Item(known.get(stem, images / f"{stem}.jpg"), text)
        for stem, text in files_by_stem(texts, ".txt").items()
    ]


def _mistake(words: list[str]) -> str:
    """Return what is wrong with a line: its number of columns, a word, or the category."""
    if len(words) != COLUMNS:
        return f"{len(words)} columns (VisDrone-DET has {COLUMNS})"
    try:
        category = [float(word) for word in words][5]
    except ValueError:
        return "not numbers"
    return f"category {category:g} does not exist in VisDrone-DET (0 to {OTHERS})"
