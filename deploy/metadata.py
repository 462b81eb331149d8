"""What an exported file says of itself: names, strides, sizes. Plain values, written as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from utils.config import MOST_CLASSES
from utils.errors import UserError, brief
from utils.options.meta import MOST_PIXELS

TASK = "detect"
PRECISIONS = ("fp32", "fp16", "int8")
MOST_TEXT = 4_000_000  # characters of one value
MOST_BATCH = 65_536
MOST_DETECTIONS = 100_000
MOST_PREDICTIONS = 2**24
"""Values of one image's predictions, max_det x (5 + classes), that NMS in a file may ask for."""


@dataclass(frozen=True)
class Metadata:
    """Facts that travel in every exported file.

    Attributes:
        names: Class names by id.
        stride: Pixels a cell of each level.
        max_stride: Sides of images are multiples of it, in pixels.
        imgsz: Height and width in pixels; of a dynamic file only the usual ones.
        batch: Images of a call; 0 for any number.
        dynamic: Whether images of other sizes than `imgsz` are taken.
        precision: `fp32`, `fp16` or `int8`.
        max_det: Most detections of an image where NMS is in the file; 0 where it is not.
        conf_thres: Least confidence of that NMS.
        iou_thres: Overlap above which that NMS drops a box.
        task: `detect`.
    """

    names: tuple[str, ...]
    stride: tuple[float, ...]
    max_stride: int
    imgsz: tuple[int, int]
    batch: int = 0
    dynamic: bool = False
    precision: str = "fp32"
    max_det: int = 0
    conf_thres: float = 0.0
    iou_thres: float = 0.0
    task: str = TASK

    def to_texts(self) -> dict[str, str]:
        """Return each value as JSON by its key, for files that store texts."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], where: str) -> "Metadata":
        """Return the metadata of a file from its texts; other keys are left alone.

        Raises:
            UserError: A value is missing or out of its range; the message begins with `where`.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name not in texts:
                raise UserError(
                    f"{where}: it does not say its '{item.name}': no detector that export.py wrote;"
                    " export it by export.py --weights best.pt"
                )
            values[item.name] = _parsed(texts[item.name], f"{where}: metadata '{item.name}'")
        return cls.from_values(values, where)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> "Metadata":
        """Return checked metadata; lists become tuples."""
        for item in fields(cls):
            if not _RULES[item.name](values[item.name]):
                raise UserError(
                    f"{where}: metadata '{item.name}': {brief(values[item.name])} is not what"
                    " export.py writes; the file is damaged or of another tool"
                )
        check_predictions(values["max_det"], len(values["names"]), f"{where}: metadata 'max_det'")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)


def check_predictions(max_det: int, nc: int, where: str) -> None:
    """Refuse a number of detections whose predictions would fill the memory.

    Args:
        max_det: Most detections of an image.
        nc: Number of classes.
        where: Begins the message.

    Raises:
        UserError: `max_det` is too large for so many classes.
    """
    most = MOST_PREDICTIONS // (5 + nc)
    if max_det > most:
        raise UserError(
            f"{where}: {max_det} detections of {nc} classes do not fit into memory; at most {most}"
            " would be right"
        )


def _parsed(text: str, where: str) -> Any:
    """Return the value of a JSON text; `UserError` where it is none."""
    if len(text) > MOST_TEXT:
        raise UserError(f"{where}: has {len(text)} characters; at most {MOST_TEXT} are read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: {brief(text)} cannot be read; the file is damaged") from None


def _whole(least: int, most: int) -> Any:
    return lambda value: type(value) is int and least <= value <= most


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _list_of(check: Any, least: int, most: int) -> Any:
    return lambda value: (
        isinstance(value, list | tuple) and least <= len(value) <= most and all(map(check, value))
    )


_RULES: dict[str, Any] = {
    "names": _list_of(lambda name: isinstance(name, str), 1, MOST_CLASSES),
    "stride": _list_of(
        lambda value: type(value) in (int, float) and 0 < value <= MOST_PIXELS, 1, 64
    ),
    "max_stride": _whole(1, MOST_PIXELS),
    "imgsz": _list_of(_whole(1, MOST_PIXELS), 2, 2),
    "batch": _whole(0, MOST_BATCH),
    "dynamic": lambda value: type(value) is bool,
    "precision": lambda value: value in PRECISIONS,
    "max_det": _whole(0, MOST_DETECTIONS),
    "conf_thres": _share,
    "iou_thres": _share,
    "task": lambda value: value == TASK,
}
