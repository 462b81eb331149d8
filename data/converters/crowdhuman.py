"""CrowdHuman: one line of JSON for each image, with head, visible and full box of each person.

`{"ID": ..., "gtboxes": [{"tag", "fbox", "vbox", "hbox", "extra": {"ignore"}, "head_attr":
{"ignore"}}]}`, boxes as left, top, width, height in pixels. Objects with the tag `mask` are crowds
or reflections. Shao et al., "CrowdHuman: A Benchmark for Detecting Human in a Crowd", 2018.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from data.converters.base import (
    CONVERTERS,
    MOST_BYTES,
    BadRecordError,
    Converter,
    Record,
    boxes_of,
    folders_below,
    images_by_stem,
    split_of,
)
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions

KEYS = {"full": "fbox", "visible": "vbox", "head": "hbox"}
ATTRIBUTES = {"full": "extra", "visible": "extra", "head": "head_attr"}  # where `ignore` is
PERSON = "person"


class Lines(Sequence[bytes]):
    """Lines of a file, read as they are asked for in order; blank ones are left out."""

    def __init__(self, file: Path):
        self.file = file
        self._count = sum(bool(line.strip()) for line in self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        """Yield each line; one that is too long is cut, and is no JSON then."""
        with self.file.open("rb") as file:
            while line := file.readline(MOST_BYTES):
                if line.strip():
                    yield line

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return list(self)[index]


@CONVERTERS.register("crowdhuman")
class CrowdHuman(Converter):
    """Reader of `annotation_train.odgt` and `annotation_val.odgt`."""

    options = ("boxes",)

    def __init__(self, source: Path, opt: ConvertOptions):
        super().__init__(source, opt)
        # head first, as in `--boxes head full`: the count of the published tables is two classes
        self.names = ["head" if kind == "head" else PERSON for kind in opt.boxes]
        files = [file for folder in folders_below(source, 1) for file in folder.glob("*.odgt")]
        found: dict[str, Path] = {}
        for file in sorted(files):
            split = split_of(file.stem) or file.stem
            if split in found:
                raise UserError(f"{source}: {found[split]} and {file} are both of '{split}'")
            found[split] = file
        if not found:
            raise UserError(
                f"{source}: no annotations of CrowdHuman: expected annotation_train.odgt and"
                " annotation_val.odgt"
            )
        self.splits = {s: Lines(file) for s, file in self.choose_splits(found).items()}
        self._images = images_by_stem(source, recursive=True)

    def read(self, item: bytes) -> Record:
        """Return the boxes of the persons of a line."""
        name, persons = _parse(item)
        missing = self.source / "Images" / f"{Path(name).name}.jpg"
        image = self._images.get(name, missing)
        rows: list[tuple[float, ...]] = []
        reasons: list[str] = []
        for number, kind in enumerate(self.opt.boxes):
            key = KEYS[kind]
            for person in persons:
                if reason := _reason(person, kind):
                    reasons.append(f"{self.names[number]}: {reason}")
                else:
                    rows.append((number, *_corners(person[key])))
        return Record(image, boxes_of(rows), Counter(reasons))

    def place(self, item: bytes) -> str:
        """Return the beginning of a line, which has the name of the image."""
        return item[:60].decode("utf-8", "replace")


def _parse(line: bytes) -> tuple[str, list[Any]]:
    """Return the name of an image and its objects from a line of JSON.

    Raises:
        BadRecordError: The line is no such JSON.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRecordError(f"no JSON: {line[:60].decode('utf-8', 'replace')!r}") from None
    name = content.get("ID") if isinstance(content, dict) else None
    persons = content.get("gtboxes") if isinstance(content, dict) else None
    if not isinstance(name, str) or not isinstance(persons, list):
        raise BadRecordError("a line without ID or gtboxes")
    if not all(isinstance(person, dict) for person in persons):
        raise BadRecordError("gtboxes holds something that is no object")
    return name, persons


def _reason(person: dict[str, Any], kind: str) -> str:
    """Return why a box of an object is left out; empty for one that stays."""
    if person.get("tag") != PERSON:
        return f"tag {str(person.get('tag'))[:20]}"
    attributes = person.get(ATTRIBUTES[kind])
    if isinstance(attributes, dict) and attributes.get("ignore", 0) != 0:
        return "ignore tag"
    return "" if person.get(KEYS[kind]) is not None else "no such box"


def _corners(box: Any) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of left, top, width, height.

    Raises:
        BadRecordError: The box is not four numbers.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise BadRecordError("a box that is not four numbers")
    left, top, width, height = box
    return left, top, left + width, top + height
