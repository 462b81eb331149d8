"""Pictures of a validation: confusion matrix, the four curves, images with labels and
detections.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from utils.evaluator import EvalResult
from utils.files import save_picture
from utils.metrics import CONFIDENCES, ConfusionMatrix
from utils.plots.drawing import save_labels, save_mosaic
from utils.plots.text import axis_text, axis_texts

LEGEND_CLASSES = (
    20  # more classes than this are drawn as thin grey lines, the mean alone keeps a legend
)
CELL_NUMBERS = 30  # up to so many classes the cells of the confusion matrix carry their number
LARGEST_SIDE = 60  # inches, of the confusion matrix
SHOWN_CONFIDENCE = 0.25  # detections below it would hide the image


def plot_evaluation(result: EvalResult, names: Sequence[str], folder: Path) -> None:
    """Write confusion_matrix.png, PR_curve.png, F1_curve.png, P_curve.png and R_curve.png."""
    plot_confusion(result.confusion, names, folder / "confusion_matrix.png")
    curves, mean_f1 = result.curves, result.curves.f1.mean(0) if len(result.ap) else np.zeros(1)
    best = f"all classes {mean_f1.max():.2f} at {CONFIDENCES[mean_f1.argmax()]:.3f}"
    ap50 = [f"{name} {ap:.3f}" for name, ap in zip(result.names, result.ap[:, 0], strict=True)]
    _plot_curves(
        curves.pr,
        ap50,
        f"all classes {result.map50:.3f} mAP50",
        ("Recall", "Precision"),
        folder / "PR_curve.png",
    )
    _plot_curves(curves.f1, result.names, best, ("Confidence", "F1"), folder / "F1_curve.png")
    _plot_curves(
        curves.precision,
        result.names,
        "all classes",
        ("Confidence", "Precision"),
        folder / "P_curve.png",
    )
    _plot_curves(
        curves.recall, result.names, "all classes", ("Confidence", "Recall"), folder / "R_curve.png"
    )


def _plot_curves(
    values: np.ndarray, labels: Sequence[str], mean_label: str, axes: tuple[str, str], path: Path
) -> None:
    """One line a class over `CONFIDENCES`, the mean in bold; `values` (classes, 1000)."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    few = len(values) <= LEGEND_CLASSES
    for row, label in zip(values, labels, strict=True):
        style = (
            {"linewidth": 1.2, "label": axis_text(label)}
            if few
            else {"linewidth": 0.6, "color": "lightgrey"}
        )
        axis.plot(CONFIDENCES, row, **style)
    if len(values):
        axis.plot(CONFIDENCES, values.mean(0), linewidth=3, color="navy", label=mean_label)
        axis.legend(bbox_to_anchor=(1.02, 1), loc="upper left", borderaxespad=0)
    axis.set(
        xlabel=axes[0],
        ylabel=axes[1],
        xlim=(0, 1),
        ylim=(0, 1.01),
        title=f"{axes[1]} over {axes[0].lower()}",
    )
    axis.grid(alpha=0.3)
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=130))


def plot_confusion(confusion: ConfusionMatrix, names: Sequence[str], path: Path) -> None:
    """Predicted over true class; colours and numbers are shares of the true class (column)."""
    counts, nc = confusion.matrix.astype(float), confusion.nc
    shares = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    # inches, so that the names of the classes stay apart, as far as a picture can be that large
    side = min(max(5.5, (0.45 if nc <= CELL_NUMBERS else 0.18) * nc + 3), LARGEST_SIDE)
    figure = Figure(figsize=(side * 1.15, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    ticks, size = range(nc + 1), 10 if nc <= CELL_NUMBERS else 7
    axis.set_xticks(ticks, [*axis_texts(names), "background"], rotation=90, fontsize=size)
    axis.set_yticks(ticks, [*axis_texts(names), "missed"], fontsize=size)
    axis.set_xlabel("True", fontsize=side + 4)
    axis.set_ylabel("Predicted", fontsize=side + 4)
    axis.set_title(
        f"Confusion at confidence {confusion.conf}, IoU {confusion.iou_thres}", fontsize=side + 6
    )
    if nc <= CELL_NUMBERS:
        for row, column in np.argwhere(shares >= 0.005):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axis.text(
                column,
                row,
                f"{shares[row, column]:.2f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=130))


def batch_pictures(
    names: Sequence[str], folder: Path, batches: int = 3
) -> Callable[[Any, list[Tensor]], None]:
    """An `on_batch` for `evaluate`: writes val_batch0_labels.jpg and val_batch0_pred.jpg, up to so
    many batches.
    """
    done = 0

    def draw(batch: Any, detections: list[Tensor]) -> None:
        nonlocal done
        if done >= batches:
            return
        captions = [Path(file).name for file in batch.files]
        confident = [boxes[boxes[:, 4] > SHOWN_CONFIDENCE] for boxes in detections]
        save_labels(batch, names, folder / f"val_batch{done}_labels.jpg")
        save_mosaic(batch.images, confident, names, folder / f"val_batch{done}_pred.jpg", captions)
        done += 1

    return draw
