"""The COCO metric by its own tool, from boxes in memory.

It differs from YOLOv5's mAP in matching (a detection may fall back to another label), in
interpolation (101 samples, nothing past the last recall), in the number of detections (100 an
image) and in its figures by box size. So both are reported, by name.
"""

import contextlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_metric(
    detections: Sequence[Tensor], labels: Sequence[Tensor], nc: int
) -> dict[str, float]:
    """The twelve COCO figures by name, 0..1, -1 where no label counts.

    An entry an image: `detections` (n, 6) xyxy in pixels of the original file, confidence, class;
    `labels` (m, 5) class, xyxy. pycocotools computes it, or faster-coco-eval where that is
    installed: the same protocol.
    """
    coco_class, eval_class = _tool()
    rows = [
        np.column_stack(
            (np.full(len(found), i), found[:, :2], found[:, 2:4] - found[:, :2], found[:, 4:])
        )
        for i, found in enumerate(detections, start=1)
    ]
    results = np.concatenate(rows) if rows else np.empty((0, 7))
    if not sum(len(label) for label in labels):
        return dict.fromkeys(FIGURES, -1.0)
    if not len(results):
        return dict.fromkeys(FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # the tools print as they go
        truth = coco_class()
        truth.dataset = _dataset(labels, nc)
        truth.createIndex()
        evaluation = eval_class(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES, map(float, evaluation.stats), strict=False))


def _tool() -> tuple[Any, Any]:
    """The classes COCO and COCOeval of the faster of the two tools."""
    tool: ModuleType
    try:
        import faster_coco_eval as tool  # pyright: ignore[reportMissingImports]

        return tool.COCO, tool.COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval


def _dataset(labels: Sequence[Tensor], nc: int) -> dict[str, Any]:
    """Labels in COCO's annotation format, class ids as they are; image and annotation ids from 1,
    as the tools want them.
    """
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(labels, start=1):
        for label, x1, y1, x2, y2 in rows.tolist():
            box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            annotations.append(
                {
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    images = [{"id": i} for i in range(1, len(labels) + 1)]
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c} for c in range(nc)],
    }
