"""Statistics of the labels that a network is trained on, as one picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.files import save_picture
from utils.plots.drawing import class_colour
from utils.plots.text import axis_texts

NAMES_SHOWN = 30  # with more classes the axis shows ids


def plot_labels(labels: Sequence[np.ndarray], names: Sequence[str], path: Path) -> None:
    """`labels.jpg`: objects a class, outlines of boxes about a common centre, where centres lie,
    and how large boxes are.
    """
    rows = np.concatenate([np.zeros((0, 5)), *labels])
    figure = Figure(figsize=(11, 10), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    (counts, outlines), (centres, sizes) = figure.subplots(2, 2)
    _class_bars(counts, rows[:, 0].astype(int), names)
    _outlines(outlines, rows)
    _density(centres, rows[:, 1], rows[:, 2], "box centre x", "box centre y")
    centres.invert_yaxis()
    _density(sizes, rows[:, 3], rows[:, 4], "box width", "box height")
    save_picture(path, partial(figure.savefig, format=path.suffix[1:]))


def _class_bars(axes: Any, classes: np.ndarray, names: Sequence[str]) -> None:
    numbers = np.bincount(classes, minlength=len(names))
    colours = [np.array(class_colour(i)) / 255 for i in range(len(names))]
    bars = axes.bar(range(len(names)), numbers, color=colours)
    axes.set(ylabel="objects", title=f"{numbers.sum()} objects of {len(names)} classes")
    if len(names) <= NAMES_SHOWN:
        axes.set_xticks(range(len(names)), axis_texts(names), rotation=0 if len(names) <= 6 else 90)
        axes.bar_label(bars, rotation=0 if len(names) <= 12 else 90, padding=2)
        axes.margins(y=0.12)
    else:
        axes.set_xlabel("class id")


def _outlines(axes: Any, rows: np.ndarray) -> None:
    for kind, _, _, w, h in rows[:: max(1, len(rows) // 500)].tolist():
        x, y = np.array([-w, w, w, -w, -w]) / 2, np.array([-h, -h, h, h, -h]) / 2
        axes.plot(x, y, color=np.array(class_colour(int(kind))) / 255, linewidth=0.6, alpha=0.5)
    axes.set(
        xlim=(-0.5, 0.5),
        ylim=(-0.5, 0.5),
        aspect="equal",
        title="boxes about one centre (share of the image)",
    )


def _density(axes: Any, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    image = axes.hist2d(x, y, bins=50, range=[[0, 1], [0, 1]], cmap="Blues", cmin=1)[3]
    axes.set(xlabel=f"{x_name} (share of the image)", ylabel=f"{y_name} (share of the image)")
    axes.figure.colorbar(image, ax=axes, label="objects")
