"""Pictures of what a network is trained on: label statistics and batches with their boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_IMAGES = 16  # of a batch that are shown
MIN_TILE = 320  # px; smaller images are enlarged so that text is legible
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
NAMES_SHOWN = 30  # with more classes the axis shows ids


def class_colour(index: int) -> tuple[int, int, int]:
    """A distinct RGB colour for each class id."""
    red, green, blue, _ = matplotlib.colormaps["tab20"](index % 20)
    return round(255 * red), round(255 * green), round(255 * blue)


def plot_images(batch: Any, names: Sequence[str], path: Path, max_images: int = MAX_IMAGES) -> None:
    """Tile a batch with its boxes: `.images` (N, 3, H, W) uint8 RGB, `.targets` (M, 6) image,
    class, xywh; `.files`.
    """
    images = batch.images[:max_images].cpu().numpy().transpose(0, 2, 3, 1)
    targets = batch.targets.cpu().numpy()
    count, height, width = images.shape[:3]
    zoom = max(1, -(-MIN_TILE // max(height, width)))
    columns = int(np.ceil(count**0.5))
    height, width = height * zoom, width * zoom
    canvas = np.full((-(-count // columns) * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        tile = cv2.resize(
            np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR
        )
        for row in targets[targets[:, 0] == i]:
            _draw_box(
                tile,
                row[2:] * [width, height, width, height],
                names[int(row[1])],
                class_colour(int(row[1])),
            )
        _draw_text(tile, Path(batch.files[i]).name, 2, height - 3, (90, 90, 90))
        cv2.rectangle(tile, (0, 0), (width - 1, height - 1), (255, 255, 255), 1)
        y, x = i // columns * height, i % columns * width
        canvas[y : y + height, x : x + width] = tile
    cv2.imwrite(str(path), cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))


def _draw_box(image: np.ndarray, xywh: np.ndarray, text: str, colour: tuple[int, int, int]) -> None:
    x, y, w, h = xywh.tolist()
    left, top, right, bottom = (
        round(x - w / 2),
        round(y - h / 2),
        round(x + w / 2),
        round(y + h / 2),
    )
    cv2.rectangle(image, (left, top), (right, bottom), colour, 2)
    _draw_text(image, text, left, top, colour)


def _draw_text(
    image: np.ndarray, text: str, left: int, bottom: int, background: tuple[int, int, int]
) -> None:
    """White or black text on a filled box, moved inside the picture where it would stick out."""
    (w, h), base = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    left = max(0, min(left, image.shape[1] - w - 4))
    bottom = max(h + base + 2, min(bottom, image.shape[0] - 1))
    cv2.rectangle(
        image, (left, bottom - h - base - 2), (left + w + 3, bottom), background, cv2.FILLED
    )
    ink = (0, 0, 0) if np.dot(background, (0.3, 0.59, 0.11)) > 140 else (255, 255, 255)
    cv2.putText(image, text, (left + 2, bottom - base), FONT, FONT_SCALE, ink, 1, cv2.LINE_AA)


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
    figure.savefig(path)


def _class_bars(axes: Any, classes: np.ndarray, names: Sequence[str]) -> None:
    numbers = np.bincount(classes, minlength=len(names))
    colours = [np.array(class_colour(i)) / 255 for i in range(len(names))]
    bars = axes.bar(range(len(names)), numbers, color=colours)
    axes.set(ylabel="objects", title=f"{numbers.sum()} objects of {len(names)} classes")
    if len(names) <= NAMES_SHOWN:
        axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 6 else 90)
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
