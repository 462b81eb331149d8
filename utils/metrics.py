"""Detection metrics as YOLOv5 reports them: matching, precision, recall, average precision,
confusion matrix.

The COCO metric, whose rules differ in detail, is in `utils.coco_metric`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

Array = NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # .5, .55 ... .95
CONFIDENCES = np.linspace(
    0, 1, 1000
)  # x axis of the curves over confidence, and of recall in the PR curve
EPS = 1e-16


def match_predictions(detections: Tensor, labels: Tensor, iou_thresholds: Tensor) -> Tensor:
    """Which detections are right, at every IoU threshold.

    `detections` (N, 6) xyxy, confidence, class, most confident first; `labels` (M, 5) class, xyxy
    in the same pixels; `iou_thresholds` (T,). Returns (N, T) bool on the same device.

    YOLOv5's rule: every detection claims the label of its class that it overlaps most; a label goes
    to the first of its claimants whose IoU reaches the threshold. So each is used once, and a
    detection does not fall back to a second label.
    """
    n, m, t = len(detections), len(labels), len(iou_thresholds)
    if not n or not m:
        return detections.new_zeros((n, t), dtype=torch.bool)
    iou = box_iou(detections[:, :4], labels[:, 1:]) * (detections[:, 5:6] == labels[:, 0])
    overlap, label = iou.max(1)
    rank = torch.arange(n, device=detections.device)
    claim = torch.where(
        overlap >= iou_thresholds[:, None], rank, n
    )  # (T, N): own rank, or n for "no claim"
    label = label.expand(t, n)
    first = claim.new_full((t, m), n).scatter_reduce(1, label, claim, "amin")
    return ((claim < n) & (claim == first.gather(1, label))).T


@dataclass(frozen=True)
class Curves:
    """What the curve plots show, one row a class of `ap_class`, 1000 points over `CONFIDENCES`."""

    precision: Array  # over confidence
    recall: Array  # over confidence
    f1: Array  # over confidence
    pr: Array  # precision over recall, at IoU .5


@dataclass(frozen=True)
class APResult:
    """Metrics of the classes that have labels, in the order of `ap_class`; 0..1 all."""

    p: Array  # (classes,) precision at the confidence of the best mean F1, IoU .5
    r: Array  # (classes,) recall at the same confidence
    f1: Array  # (classes,)
    ap: Array  # (classes, 10), a column an IoU threshold
    ap_class: NDArray[np.int64]  # (classes,) class ids
    labels: NDArray[np.int64]  # (classes,) number of labels
    names: list[str]  # (classes,) names, the id itself where none is known
    confidence: float  # where p, r and f1 are read
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
        """Mean precision."""
        return float(self.p.mean()) if len(self.p) else 0.0

    @property
    def mr(self) -> float:
        """Mean recall."""
        return float(self.r.mean()) if len(self.r) else 0.0


def ap_per_class(
    tp: NDArray,
    conf: NDArray,
    pred_cls: NDArray,
    target_cls: NDArray,
    names: list[str] | dict[int, str] | None = None,
) -> APResult:
    """Precision, recall and average precision of every class that has labels.

    `tp` (N, T) bool or 0/1, right at each IoU threshold; `conf`, `pred_cls` (N,); `target_cls`
    (M,). Any order. Precision and recall are read where the mean F1, smoothed over a tenth of the
    confidence axis, is largest.
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
        # confidence falls along the detections and np.interp wants it to rise
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
    """Area under the precision envelope, 101 recall points joined by trapezoids (YOLOv5's rule).

    Both (N,), along falling confidence. The envelope ends at (1, 0). So perfect detections give
    .995, not 1 (the last of the 100 trapezoids is half), and a curve that stops at a lower recall
    goes on in a straight line: more than COCO's figure.
    """
    x = np.linspace(0, 1, 101)
    return float(np.trapezoid(np.interp(x, *_envelope(recall, precision)), x))


def _envelope(recall: Array, precision: Array) -> tuple[Array, Array]:
    """Recall and the best precision at that recall or beyond, from (0, 1) to (1, 0)."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([1.0], precision, [0.0]))
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def _smooth(y: Array, share: float = 0.1) -> Array:
    """Moving average over `share` of the points, the ends repeated."""
    half = round(len(y) * share) // 2
    window = 2 * half + 1
    return np.convolve(np.pad(y, half, mode="edge"), np.full(window, 1 / window), mode="valid")


def fitness(map50: float, map50_95: float) -> float:
    """What `best.pt` is chosen by: .1 mAP50 + .9 mAP50-95."""
    return 0.1 * map50 + 0.9 * map50_95


class ConfusionMatrix:
    """Counts of (predicted class, true class); the last row is "missed", the last column
    "background".

    Whatever the classes, every detection above `conf` claims the label that it overlaps most, by
    more than `iou_thres`; a label goes to the claimant with the largest IoU. A detection with a
    class id of `nc` or more, which a model with more classes than the data may give, has no row and
    is left out.
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45):
        self.nc, self.conf, self.iou_thres = nc, conf, iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1), dtype=np.int64)

    def update(self, detections: Tensor, labels: Tensor) -> None:
        """Add one image: `detections` (N, 6) xyxy, confidence, class; `labels` (M, 5)
        class, xyxy.
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
        """Indices of the detections that hit a label, and of these labels."""
        if not len(detections) or not len(labels):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        overlap, label = (x.numpy() for x in box_iou(detections, labels).max(1))
        order = np.argsort(-overlap, kind="stable")
        order = order[overlap[order] > self.iou_thres]
        labels_hit, first = np.unique(label[order], return_index=True)
        return order[first], labels_hit
