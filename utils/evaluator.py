"""The evaluation loop. Training, pruning and val.py call this one function."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from tqdm import tqdm

from utils.boxes import non_max_suppression, scale_boxes
from utils.coco_metric import coco_metric
from utils.engine.modes import evaluating
from utils.images import unit_range
from utils.log import LOGGER
from utils.metrics import (
    IOU_THRESHOLDS,
    APResult,
    ConfusionMatrix,
    ap_per_class,
    fitness,
    match_predictions,
)
from utils.tta import predict_augmented

HEADER = f"{'Class':>22}" + "".join(
    f"{title:>11}" for title in ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")
)


@dataclass(frozen=True)
class EvalResult(APResult):
    """Metrics of one pass over a data set, and what went with it."""

    seen: int  # images
    losses: dict[str, float]  # mean over batches by name; empty without a loss
    speed: dict[str, float]  # ms per image: pre, inference, nms
    coco: dict[str, float] | None  # COCO's figures by name, where asked for
    confusion: ConfusionMatrix

    @property
    def instances(self) -> int:
        """Number of labels."""
        return int(self.labels.sum())

    @property
    def fitness(self) -> float:
        """What `best.pt` is chosen by."""
        return fitness(self.map50, self.map)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    names: list[str],
    loss: Callable[[list[Tensor], Tensor], tuple[Tensor, dict[str, Tensor]]] | None = None,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    single_cls: bool = False,
    augment: bool = False,
    half: bool = False,
    progress: bool = True,
    coco: bool = False,
    on_batch: Callable[[Any, list[Tensor]], None] | None = None,
) -> EvalResult:
    """Detect in every image of `loader` and compare with its labels.

    `model`: anything that returns `(decoded, raw maps)` in eval mode, training form or fused; its
    modes are restored. `loader` gives batches with `.images` (uint8), `.targets`, `.shapes` (see
    docs/architecture.md). Boxes are compared in pixels of the original files. `single_cls` counts
    every detection as class 0, `augment` looks at three views of each image, `half` computes in
    float16 (not on the CPU), `coco` adds COCO's metric. `on_batch(batch, detections)` gets each
    image's (n, 6) xyxy, confidence, class, on the CPU, in pixels of `batch.images`.
    """
    assert not (augment and loss), "augmented predictions have no raw maps for a loss"
    device = next(iter(model.parameters()), torch.empty(0)).device
    clock, tally = _Clock(device), _Tally(len(names))
    sums: dict[str, Tensor] = {}
    batches = 0
    with evaluating(model), torch.no_grad():
        for batch in tqdm(
            loader, desc=HEADER, disable=not progress, leave=False, dynamic_ncols=True
        ):
            with clock("pre"):
                images = unit_range(batch.images.to(device, non_blocking=True))
            with (
                clock("inference"),
                torch.autocast(device.type, torch.float16, enabled=half and device.type != "cpu"),
            ):
                decoded, raw = (predict_augmented(model, images), []) if augment else model(images)
            if loss is not None:
                for name, part in loss([level.float() for level in raw], batch.targets.to(device))[
                    1
                ].items():
                    sums[name] = sums.get(name, 0) + part
            with clock("nms"):
                found = non_max_suppression(
                    decoded,
                    conf_thres,
                    iou_thres,
                    agnostic=single_cls,
                    multi_label=True,
                    max_det=max_det,
                )
                detections = [boxes.cpu() for boxes in found]
            for boxes in detections if single_cls else ():
                boxes[:, 5] = 0
            tally.add_batch(batch, detections)
            batches += 1
            if on_batch is not None:
                on_batch(batch, detections)
    return EvalResult(
        **vars(tally.metrics(names)),
        seen=tally.seen,
        losses={name: float(total) / batches for name, total in sums.items()},
        speed={
            name: clock.seconds[name] / max(tally.seen, 1) * 1000
            for name in ("pre", "inference", "nms")
        },
        coco=coco_metric(tally.detections, tally.labels, len(names)) if coco else None,
        confusion=tally.confusion,
    )


def log_table(result: EvalResult, per_class: bool = False) -> None:
    """Print the header, the row of all classes, and on request a row a class."""
    LOGGER.info(HEADER)
    LOGGER.info(
        _row("all", result.seen, result.instances, result.mp, result.mr, result.map50, result.map)
    )
    if per_class:
        for i, name in enumerate(result.names):
            figures = (result.p[i], result.r[i], result.ap[i, 0], result.ap[i].mean())
            LOGGER.info(_row(name, result.seen, int(result.labels[i]), *figures))


def _row(name: str, images: int, instances: int, *figures: float) -> str:
    name = name if len(name) <= 22 else name[:21] + "…"
    return f"{name:>22}{images:>11}{instances:>11}" + "".join(
        f"{figure:>11.3g}" for figure in figures
    )


class _Tally:
    """Detections and labels of the images seen so far, on the CPU, in pixels of the
    original files.
    """

    def __init__(self, nc: int):
        self.detections: list[Tensor] = []  # (n, 6) an image
        self.labels: list[Tensor] = []  # (m, 5) an image: class, xyxy
        self.right: list[Tensor] = []  # (n, 10) an image
        self.confusion = ConfusionMatrix(nc)
        self._thresholds = torch.tensor(IOU_THRESHOLDS, dtype=torch.float32)

    @property
    def seen(self) -> int:
        return len(self.labels)

    def add_batch(self, batch: Any, detections: list[Tensor]) -> None:
        """Take in one batch; `detections` are in pixels of the letterboxed images."""
        height, width = batch.images.shape[2:]
        targets = batch.targets.cpu()
        scale = targets.new_tensor([width, height, width, height])
        corners = box_convert(targets[:, 2:], "cxcywh", "xyxy") * scale
        for i, (boxes, shapes) in enumerate(zip(detections, batch.shapes, strict=True)):
            mine = targets[:, 0] == i
            labels = torch.cat((targets[mine, 1:2], scale_boxes(corners[mine], shapes)), 1)
            boxes = torch.cat((scale_boxes(boxes[:, :4], shapes), boxes[:, 4:]), 1)
            self.detections.append(boxes)
            self.labels.append(labels)
            self.right.append(match_predictions(boxes, labels, self._thresholds))
            self.confusion.update(boxes, labels)

    def metrics(self, names: list[str]) -> APResult:
        """Metrics of all images together."""
        boxes = torch.cat([torch.zeros(0, 6), *self.detections]).numpy()
        labels = torch.cat([torch.zeros(0, 5), *self.labels]).numpy()
        right = torch.cat(
            [torch.zeros(0, len(IOU_THRESHOLDS), dtype=torch.bool), *self.right]
        ).numpy()
        return ap_per_class(right, boxes[:, 4], boxes[:, 5], labels[:, 0].astype(np.int64), names)


class _Clock:
    """Sums up seconds by name.

    On a GPU it waits for the device at both ends, else it would time the launch only.
    """

    def __init__(self, device: torch.device):
        self.seconds = {"pre": 0.0, "inference": 0.0, "nms": 0.0}
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
