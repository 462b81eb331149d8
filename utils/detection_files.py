"""Detections as files: YOLO text and COCO's JSON."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.ops import box_convert

from utils.log import LOGGER

COCO_IDS = [i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
"""COCO's own ids of its 80 classes, which come from a list of 91 with gaps."""


def yolo_text(boxes: Tensor, height: int, width: int, with_confidence: bool = False) -> str:
    """Return a line for each box: class, centre and size as shares of the image, confidence.

    Args:
        boxes: (n, 6) = x1, y1, x2, y2 in pixels, confidence, class.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        with_confidence: Whether the confidence is written.
    """
    lines = []
    size = boxes.new_tensor([width, height, width, height])
    places = (box_convert(boxes[:, :4], "xyxy", "cxcywh") / size).tolist()
    for (*_, confidence, label), place in zip(boxes.tolist(), places, strict=True):
        numbers = [*place, confidence] if with_confidence else place
        words = [str(int(label)), *(f"{number:.6g}" for number in numbers)]
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def output_names(files: Sequence[str]) -> dict[str, str]:
    """Return a name without suffix for the output of each image, no two alike.

    The name is the file's stem. Where two images have one stem, all names are paths from the
    deepest folder that holds all images; `a.jpg` beside `a.png` keeps its suffix.
    """
    stems = {file: Path(file).stem for file in files}
    if len(set(stems.values())) == len(stems):
        return stems
    top = os.path.commonpath([Path(file).parent for file in files])
    paths = {file: Path(file).relative_to(top) for file in files}
    LOGGER.warning(
        f"{len(stems) - len(set(stems.values()))} images have the name of another one: the outputs"
        f" are named by their paths in {top}"
    )
    counts = Counter(path.with_suffix("") for path in paths.values())
    names = {
        file: (path.with_suffix("") if counts[path.with_suffix("")] == 1 else path).as_posix()
        for file, path in paths.items()
    }
    if len(set(names.values())) == len(names):
        return names
    return {file: path.as_posix() for file, path in paths.items()}  # a.jpg, a.png and a.jpg.png


def image_ids(names: Mapping[str, str]) -> dict[str, int | str]:
    """Return COCO's id of each image: its name, as a number where all such numbers differ.

    `000000000139` becomes 139, but neither `1` nor `01` where there are both.
    """
    ids = {file: int(name) if name.isdecimal() else name for file, name in names.items()}
    return ids if len(set(ids.values())) == len(ids) else dict(names)


def coco_records(
    boxes: Tensor, image_id: int | str, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the detections of one image in COCO's result format.

    A box is its top left corner and size in pixels.

    Args:
        boxes: (n, 6) = x1, y1, x2, y2 in pixels, confidence, class.
        image_id: Id of the image, see `image_ids`.
        category_ids: Category id of each class; None: the class ids themselves.
    """
    records = []
    for x1, y1, x2, y2, confidence, label in boxes.tolist():
        category = category_ids[int(label)] if category_ids else int(label)
        corner_and_size = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
        records.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": corner_and_size,
                "score": round(confidence, 5),
            }
        )
    return records


def coco_category_ids(names: Sequence[str]) -> list[int] | None:
    """Return COCO's own ids where `names` are its 80 classes; None for other classes."""
    is_coco = len(names) == 80 and names[0] == "person" and names[-1] == "toothbrush"
    return COCO_IDS if is_coco else None
