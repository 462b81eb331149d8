"""Evaluate a model on a data set: the one loop of training, pruning and val.py."""

from collections.abc import Callable, Iterable, Sequence
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
from utils.timing import StageClock
from utils.tta import predict_augmented

HEADER = f"{'Class':>22}" + "".join(
    f"{title:>11}" for title in ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")
)


USUAL_CONF_THRES = 0.001
"""Confidence above which detections are missing from the curves that AP is measured on."""

LossFunction = Callable[[list[Tensor], Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class EvalSettings:
    """How `evaluate` detects, and what it measures.

    Attributes:
        conf_thres: Lowest confidence of a detection, 0..1.
        iou_thres: IoU above which non-maximum suppression drops a box, 0..1.
        max_det: Most detections of an image.
        single_cls: Count every detection as class 0.
        augment: Join the predictions on three views of each image.
        half: Run the model in float16; without effect on the CPU.
        progress: Show a progress bar.
        coco: Compute COCO's metric too.
    """

    conf_thres: float = USUAL_CONF_THRES
    iou_thres: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    augment: bool = False
    half: bool = False
    progress: bool = True
    coco: bool = False


@dataclass(frozen=True)
class EvalResult(APResult):
    """Metrics of one pass over a data set, with its losses and times."""

    seen: int  # images
    losses: dict[str, float]  # mean over images by name; empty without a loss
    speed: dict[str, float]  # ms per image: pre, inference, nms
    coco: dict[str, float] | None  # COCO's figures by name, where asked for
    confusion: ConfusionMatrix

    @property
    def instances(self) -> int:
        """Number of labels."""
        return int(self.labels.sum())

    @property
    def fitness(self) -> float:
        """Figure that `best.pt` is chosen by."""
        return fitness(self.map50, self.map)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    names: list[str],
    loss: LossFunction | None = None,
    on_batch: Callable[[Any, list[Tensor]], None] | None = None,
    **settings: Any,
) -> EvalResult:
    """Detect in every image of `loader` and compare with its labels.

    Boxes are compared in pixels of the original files.

    Args:
        model: Any module that returns `(decoded, raw maps)` in eval mode, in training form or
            fused; its modes are restored.
        loader: Batches with `.images` (uint8), `.targets` and `.shapes`; see
            docs/architecture.md.
        names: Class names by id.
        loss: The detection loss, `loss(raw, targets)` -> (scalar, parts by name), or None. The
            parts are averaged over the batches by their images; not with `augment`.
        on_batch: Called as `on_batch(batch, detections)` after each batch. The detections of an
            image are (n, 6) rows xyxy, confidence, class, on the CPU, in pixels of `batch.images`.
        **settings: Fields of `EvalSettings`.
    """
    opt = EvalSettings(**settings)
    assert not (opt.augment and loss), "augmented predictions have no raw maps for a loss"
    device = next(iter(model.parameters()), torch.empty(0)).device
    clock, tally, losses = StageClock(device), _Tally(len(names)), _LossMeans()
    with evaluating(model), torch.no_grad():
        for batch in _with_progress(loader, opt.progress):
            decoded, raw = _predict(model, batch.images, opt, clock)
            if loss is not None:
                parts = loss([level.float() for level in raw], batch.targets.to(device))[1]
                losses.add(parts, len(batch.images))
            tally.unreadable += int((~decoded.isfinite()).flatten(1).any(1).sum())
            detections = _select(decoded, opt, clock)
            tally.add_batch(batch, detections)
            if on_batch is not None:
                on_batch(batch, detections)
    tally.warn_if_unreadable()
    return EvalResult(
        **vars(tally.metrics(names)),
        seen=tally.seen,
        losses=losses.means(),
        speed=clock.milliseconds(tally.seen),
        coco=coco_metric(tally.detections, tally.labels, len(names)) if opt.coco else None,
        confusion=tally.confusion,
    )


def warn_of_settings(
    labels: Sequence[np.ndarray], max_det: int, conf_thres: float = USUAL_CONF_THRES
) -> None:
    """Warn, before an evaluation, of settings that bend its metrics.

    Args:
        labels: Labels of each image, (n, 5) each.
        max_det: Most detections of an image.
        conf_thres: Lowest confidence of a detection.
    """
    counts = np.array([len(rows) for rows in labels])
    total, most = int(counts.sum()), int(counts.max(initial=0))
    if most > max_det:
        found = int(counts.clip(max=max_det).sum())
        LOGGER.warning(
            f"--max-det {max_det}: {int((counts > max_det).sum())} images have more objects, up to"
            f" {most}; recall cannot exceed {found / total:.3f}; try --max-det {most * 2}"
        )
    if conf_thres > USUAL_CONF_THRES:
        LOGGER.warning(
            f"--conf-thres {conf_thres:g}: above {USUAL_CONF_THRES:g} the end of each curve is cut"
            " off, so that P, R and mAP are not comparable with other validations"
        )


def _with_progress(loader: Iterable[Any], shown: bool) -> Iterable[Any]:
    return tqdm(loader, desc=HEADER, disable=not shown, leave=False, dynamic_ncols=True)


def _predict(
    model: nn.Module, images: Tensor, opt: EvalSettings, clock: StageClock
) -> tuple[Tensor, list[Tensor]]:
    """Return the decoded predictions and the raw maps of a batch; no maps of augmented images.

    Args:
        model: The model, in eval mode.
        images: (N, 3, H, W) uint8.
        opt: The settings of the evaluation.
        clock: Takes the times of `pre` and `inference`; its device is the model's.
    """
    device = clock.device
    half = opt.half and device.type != "cpu"
    with clock("pre"):
        images = unit_range(images.to(device, non_blocking=True))
    with clock("inference"), torch.autocast(device.type, torch.float16, enabled=half):
        return (predict_augmented(model, images), []) if opt.augment else model(images)


def _select(decoded: Tensor, opt: EvalSettings, clock: StageClock) -> list[Tensor]:
    """Return the detections of each image by non-maximum suppression: (n, 6), on the CPU."""
    with clock("nms"):
        found = non_max_suppression(
            decoded,
            opt.conf_thres,
            opt.iou_thres,
            agnostic=opt.single_cls,
            multi_label=True,
            max_det=opt.max_det,
        )
        detections = [boxes.cpu() for boxes in found]
    if opt.single_cls:
        for boxes in detections:
            boxes[:, 5] = 0
    return detections


def log_table(result: EvalResult, per_class: bool = False) -> None:
    """Log the header and the row of all classes; `per_class` adds a row for each class."""
    LOGGER.info(HEADER)
    LOGGER.info(
        _row("all", result.seen, result.instances, result.mp, result.mr, result.map50, result.map)
    )
    if per_class:
        for i, name in enumerate(result.names):
            figures = (result.p[i], result.r[i], result.ap[i, 0], result.ap[i].mean())
            LOGGER.info(_row(name, result.seen, int(result.labels[i]), *figures))


def _row(name: str, images: int, instances: int, *figures: float) -> str:
    """Return a row of the table; a name of more than 22 characters is cut."""
    name = name if len(name) <= 22 else name[:21] + "…"
    columns = "".join(f"{figure:>11.3g}" for figure in figures)
    return f"{name:>22}{images:>11}{instances:>11}{columns}"


class _Tally:
    """Collect detections and labels of the images, on the CPU, in pixels of the original files."""

    def __init__(self, nc: int):
        self.detections: list[Tensor] = []  # (n, 6) of each image: xyxy, confidence, class
        self.labels: list[Tensor] = []  # (m, 5) of each image: class, xyxy
        self.right: list[Tensor] = []  # (n, 10) of each image: right at each IoU threshold
        self.confusion = ConfusionMatrix(nc)
        self.unreadable = 0  # images with predictions that are not finite
        self._thresholds = torch.tensor(IOU_THRESHOLDS, dtype=torch.float32)

    @property
    def seen(self) -> int:
        """Number of images."""
        return len(self.labels)

    def warn_if_unreadable(self) -> None:
        """Warn of images whose predictions are not finite: nothing can be found in them."""
        if self.unreadable:
            LOGGER.warning(
                f"WARNING: in {self.unreadable} of {self.seen} images the model's outputs are not"
                " finite numbers and count as nothing found; its weights overflow"
            )

    def add_batch(self, batch: Any, detections: list[Tensor]) -> None:
        """Add one batch; `detections` are in pixels of the letterboxed images."""
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
        """Return the metrics of all images together."""
        boxes = torch.cat([torch.zeros(0, 6), *self.detections]).numpy()
        labels = torch.cat([torch.zeros(0, 5), *self.labels]).numpy()
        none_right = torch.zeros(0, len(IOU_THRESHOLDS), dtype=torch.bool)
        right = torch.cat([none_right, *self.right]).numpy()
        return ap_per_class(right, boxes[:, 4], boxes[:, 5], labels[:, 0].astype(np.int64), names)


class _LossMeans:
    """Average the parts of the loss over the images: batches differ in size."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def add(self, parts: dict[str, Tensor], images: int) -> None:
        """Add the parts of one batch, scalars by name."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0) + part * images
        self._images += images

    def means(self) -> dict[str, float]:
        """Return the mean of each part by name."""
        return {name: float(total) / self._images for name, total in self._sums.items()}
