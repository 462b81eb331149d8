"""Detection metrics as YOLOv5 reports them.

Matching, precision, recall, average precision and confusion matrix. The COCO metric, whose rules
differ in detail, is in `utils.coco_metric`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

Array = NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # .5, .55 ... .95
CONFIDENCES = np.linspace(0, 1, 1000)
"""x axis of the curves over confidence, and of recall in the PR curve."""
EPS = 1e-16


def match_predictions(detections: Tensor, labels: Tensor, iou_thresholds: Tensor) -> Tensor:
    """Decide which detections are right at every IoU threshold.

    YOLOv5's rule: every detection claims the label of its class that it overlaps most; a label goes
    to the most confident of its claimants whose IoU reaches the threshold. So a detection and a
    label are used once at most, and a detection does not fall back to a second label.

    Args:
        detections: (N, 6) = x1, y1, x2, y2, confidence, class; most confident first.
        labels: (M, 5) = class, x1, y1, x2, y2 in the same pixels.
        iou_thresholds: (T,).

    Returns:
        (N, T) bool, on the same device.
    """
    n, m, t = len(detections), len(labels), len(iou_thresholds)
    if not n or not m:
        return detections.new_zeros((n, t), dtype=torch.bool)
    same_class = detections[:, 5:6] == labels[:, 0]
    iou = box_iou(detections[:, :4], labels[:, 1:]) * same_class
    overlap, label = iou.max(1)
    rank = torch.arange(n, device=detections.device)
    # (T, N): the detection's own rank, or n where it claims no label.
    claim = torch.where(overlap >= iou_thresholds[:, None], rank, n)
    label = label.expand(t, n)
    first = claim.new_full((t, m), n).scatter_reduce(1, label, claim, "amin")
    return ((claim < n) & (claim == first.gather(1, label))).T


@dataclass(frozen=True)
class Curves:
    """Curves of the plots at IoU .5: (classes, 1000), a row for each class of `ap_class`.

    Args:
        precision: Precision over confidence.
        recall: Recall over confidence.
        f1: F1 over confidence.
        pr: Precision over recall.
    """

    precision: Array
    recall: Array
    f1: Array
    pr: Array


@dataclass(frozen=True)
class APResult:
    """Metrics of the classes that have labels, 0..1, in the order of `ap_class`.

    Args:
        p: (classes,) precision at `confidence`, IoU .5.
        r: (classes,) recall at `confidence`, IoU .5.
        f1: (classes,) F1 at `confidence`, IoU .5.
        ap: (classes, 10) average precision, a column for each IoU threshold.
        ap_class: (classes,) class ids.
        labels: (classes,) number of labels.
        names: (classes,) names; the id itself where no name is known.
        confidence: Confidence of the best mean F1.
        curves: Curves for the plots.
    """

    p: Array
    r: Array
    f1: Array
    ap: Array
    ap_class: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: list[str]
    confidence: float
    curves: Curves

    @property
    def map50(self) -> float:
        """Mean AP at IoU .5, 0 where no class has labels."""
        return float(self.ap[:, 0].mean()) if len(self.ap) else 0.0

    @property
    def map(self) -> float:
        """Mean AP over the IoU thresholds .5 to .95."""
        return float(self.ap.mean()) if len(self.ap) else 0.0

    @property
    def mp(self) -> float:
        """Mean precision over the classes."""
        return float(self.p.mean()) if len(self.p) else 0.0

    @property
    def mr(self) -> float:
        """Mean recall over the classes."""
        return float(self.r.mean()) if len(self.r) else 0.0


def ap_per_class(
    tp: NDArray,
    conf: NDArray,
    pred_cls: NDArray,
    target_cls: NDArray,
    names: list[str] | dict[int, str] | None = None,
) -> APResult:
    """Return precision, recall and average precision of every class that has labels.

    Precision and recall are read where the mean F1, smoothed over a tenth of the confidence axis,
    is largest. Detections and labels may come in any order.

    Args:
        tp: (N, T) bool or 0/1, whether a detection is right at each IoU threshold.
        conf: (N,) confidence of the detections.
        pred_cls: (N,) class of the detections.
        target_cls: (M,) class of the labels.
        names: Class names by id.
    """
    order = np.argsort(-conf, kind="stable")
    tp, conf, pred_cls = tp[order].astype(np.float64), conf[order], pred_cls[order]
    classes, counts = np.unique(target_cls.astype(np.int64), return_counts=True)
    points = len(CONFIDENCES)
    ap = np.zeros((len(classes), tp.shape[1]))
    precision, recall, pr = (np.zeros((len(classes), points)) for _ in range(3))
    for row, (label, count) in enumerate(zip(classes, counts, strict=True)):
        mine = pred_cls == label
        if not mine.any():
            continue
        right, wrong = tp[mine].cumsum(0), (1 - tp[mine]).cumsum(0)
        recalls, precisions = right / (count + EPS), right / (right + wrong)
        # Confidence falls along the detections; np.interp needs rising values, so both change sign.
        recall[row] = np.interp(-CONFIDENCES, -conf[mine], recalls[:, 0], left=0)
        precision[row] = np.interp(-CONFIDENCES, -conf[mine], precisions[:, 0], left=1)
        for column in range(tp.shape[1]):
            ap[row, column] = average_precision(recalls[:, column], precisions[:, column])
        pr[row] = np.interp(CONFIDENCES, *_envelope(recalls[:, 0], precisions[:, 0]))
    f1 = 2 * precision * recall / (precision + recall + EPS)
    best = int(_smooth(f1.mean(0)).argmax()) if len(classes) else 0
    known = dict(enumerate(names)) if isinstance(names, list) else names or {}
    return APResult(
        p=precision[:, best],
        r=recall[:, best],
        f1=f1[:, best],
        ap=ap,
        ap_class=classes,
        labels=counts,
        names=[known.get(int(c), str(c)) for c in classes],
        confidence=float(CONFIDENCES[best]),
        curves=Curves(precision, recall, f1, pr),
    )


def average_precision(recall: Array, precision: Array) -> float:
    """Return the area under the precision envelope, YOLOv5's rule.

    101 points of recall are joined by trapezoids. The envelope ends at (1, 0). So perfect
    detections give .995, not 1 (the last of the 100 trapezoids is half), and a curve that stops at
    a lower recall goes on in a straight line, which gives more than COCO's figure.

    Args:
        recall: (N,) along falling confidence.
        precision: (N,) along falling confidence.
    """
    points = np.linspace(0, 1, 101)
    envelope = np.interp(points, *_envelope(recall, precision))
    return float(np.trapezoid(envelope, points))


def _envelope(recall: Array, precision: Array) -> tuple[Array, Array]:
    """Return recall, and the best precision at that recall or beyond, from (0, 1) to (1, 0)."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([1.0], precision, [0.0]))
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def _smooth(values: Array, share: float = 0.1) -> Array:
    """Return the moving average over `share` of the points; the end values are repeated."""
    half = round(len(values) * share) // 2
    window = 2 * half + 1
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")


def fitness(map50: float, map50_95: float) -> float:
    """Return the figure that `best.pt` is chosen by: .1 mAP50 + .9 mAP50-95."""
    return 0.1 * map50 + 0.9 * map50_95


class ConfusionMatrix:
    """Counts by predicted class (row) and true class (column).

    The last row counts labels that no detection hits, the last column detections that hit no label.

    Whatever the classes, every detection above `conf` claims the label that it overlaps most, by
    more than `iou_thres`; a label goes to the claimant with the largest IoU. A model with more
    classes than the data may give a class id of `nc` or more: such detections are left out.

    Args:
        nc: Number of classes of the data.
        conf: Least confidence.
        iou_thres: Least IoU of a hit.
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45):
        self.nc, self.conf, self.iou_thres = nc, conf, iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1), dtype=np.int64)

    def update(self, detections: Tensor, labels: Tensor) -> None:
        """Add the counts of one image.

        Args:
            detections: (N, 6) = x1, y1, x2, y2, confidence, class, on the CPU.
            labels: (M, 5) = class, x1, y1, x2, y2 in the same pixels, on the CPU.
        """
        detections = detections[(detections[:, 4] > self.conf) & (detections[:, 5] < self.nc)]
        predicted, true = detections[:, 5].int().numpy(), labels[:, 0].int().numpy()
        hit, label = self._pairs(detections[:, :4], labels[:, 1:])
        np.add.at(self.matrix, (predicted[hit], true[label]), 1)
        np.add.at(self.matrix[self.nc], np.delete(true, label), 1)
        np.add.at(self.matrix[:, self.nc], np.delete(predicted, hit), 1)

    def _pairs(
        self, detections: Tensor, labels: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the detections that hit a label, and of these labels."""
        if not len(detections) or not len(labels):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        overlap, label = (found.numpy() for found in box_iou(detections, labels).max(1))
        order = np.argsort(-overlap, kind="stable")
        order = order[overlap[order] > self.iou_thres]
        labels_hit, first = np.unique(label[order], return_index=True)
        return order[first], labels_hit
