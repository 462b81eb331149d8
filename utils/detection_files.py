"""Detections as files: YOLO text and COCO's JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.ops import box_convert

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


def coco_records(
    boxes: Tensor, file: str, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the detections of one image in COCO's result format.

    A box is its top left corner and size in pixels. The image id is the file's stem, as a number
    where the stem is a number (`000000000139.jpg` -> 139).

    Args:
        boxes: (n, 6) = x1, y1, x2, y2 in pixels, confidence, class.
        file: Path of the image.
        category_ids: Category id of each class; None: the class ids themselves.
    """
    stem = Path(file).stem
    image_id = int(stem) if stem.isdecimal() else stem
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
