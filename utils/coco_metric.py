"""The COCO metric by its own tool, from boxes in memory.

The metric differs from YOLOv5's mAP in matching (a detection may fall back to another label), in
interpolation (101 samples, nothing past the last recall), in the number of detections (100 for an
image) and in its figures by box size. So both are reported, by name.
"""

import contextlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_metric(
    detections: Sequence[Tensor], labels: Sequence[Tensor], nc: int
) -> dict[str, float]:
    """Return the twelve COCO figures by name, 0..1; -1 where no label counts.

    pycocotools computes them, or faster-coco-eval, which has the same protocol, where installed.

    Args:
        detections: For each image (n, 6) = x1, y1, x2, y2 in pixels of the original file,
            confidence, class.
        labels: For each image (m, 5) = class, x1, y1, x2, y2 in the same pixels.
        nc: Number of classes.
    """
    coco_class, eval_class = _tool()
    rows = [_result_rows(image, found) for image, found in enumerate(detections, start=1)]
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


def _result_rows(image: int, found: Tensor) -> NDArray[Any]:
    """Return (n, 7) = image id, x1, y1, width, height, confidence, class: the tools' format."""
    corner, size = found[:, :2], found[:, 2:4] - found[:, :2]
    return np.column_stack((np.full(len(found), image), corner, size, found[:, 4:]))


def _tool() -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval, of the faster tool where installed."""
    tool: ModuleType
    try:
        import faster_coco_eval as tool  # pyright: ignore[reportMissingImports]

        return tool.COCO, tool.COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval


def _dataset(labels: Sequence[Tensor], nc: int) -> dict[str, Any]:
    """Return the labels in COCO's annotation format.

    Class ids stay as they are; image and annotation ids start at 1, as the tools need them.
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
    images = [{"id": image} for image in range(1, len(labels) + 1)]
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category} for category in range(nc)],
    }
