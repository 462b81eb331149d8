"""Detections as files: YOLO text and COCO's JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.ops import box_convert

# COCO's 80 classes carry ids of a list of 91 that has gaps
COCO_IDS = [i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]


def yolo_text(boxes: Tensor, height: int, width: int, with_confidence: bool = False) -> str:
    """One line a box: class, centre and size over the image's, confidence on request; `boxes` (n,
    6) as from NMS, in pixels.
    """
    lines = []
    size = boxes.new_tensor([width, height, width, height])
    for (*_, confidence, label), place in zip(
        boxes.tolist(), (box_convert(boxes[:, :4], "xyxy", "cxcywh") / size).tolist(), strict=True
    ):
        numbers = [*place, confidence] if with_confidence else place
        lines.append(" ".join([str(int(label)), *(f"{number:.6g}" for number in numbers)]) + "\n")
    return "".join(lines)


def coco_records(
    boxes: Tensor, file: str, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format: top left corner and size in pixels.

    The image id is the file's stem, as a number where it is one (`000000000139.jpg` -> 139);
    `category_ids` replaces class ids.
    """
    stem = Path(file).stem
    image_id = int(stem) if stem.isdecimal() else stem
    records = []
    for x1, y1, x2, y2, confidence, label in boxes.tolist():
        category = category_ids[int(label)] if category_ids else int(label)
        corner_and_size = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
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
    """COCO's own ids where `names` are its 80 classes, else None: the ids stay as they are."""
    return (
        COCO_IDS
        if len(names) == 80 and names[0] == "person" and names[-1] == "toothbrush"
        else None
    )
