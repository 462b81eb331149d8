"""Autoanchor: do the anchors fit the boxes, and if not, better ones (k-means, then the genetic
search of YOLOv5).
"""

from typing import Any

import numpy as np
import torch

from data.dataset import DetectionDataset
from utils.log import LOGGER

ENOUGH = 0.98  # best possible recall from which anchors are left alone
MIN_SIDE = 2.0  # px; smaller boxes say nothing about anchors
GENERATIONS = 1000
ITERATIONS = 30


def best_possible_recall(wh: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    """Share of boxes (n, 2) px that some anchor (k, 2) px matches: no side's ratio beyond
    `anchor_t` either way.
    """
    return float((_best_ratio(wh, anchors) > 1 / anchor_t).mean())


def _best_ratio(wh: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(n,) in 0..1: for each box, over the anchors the best of the worse side's ratio; 1 = same
    size.
    """
    ratio = wh[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(2).max(1)


def kmeans_anchors(wh: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) px cluster centres of boxes (n, 2), by area.

    Lloyd's algorithm on sides divided by their spread.
    """
    spread = wh.std(0) + 1e-9
    points = wh / spread
    centres = points[rng.choice(len(points), count, replace=len(points) < count)]
    for _ in range(ITERATIONS):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        for k in np.unique(nearest):
            centres[k] = points[nearest == k].mean(0)
    return _by_area(centres * spread)


def evolve_anchors(
    wh: np.ndarray,
    anchors: np.ndarray,
    anchor_t: float,
    rng: np.random.Generator,
    generations: int = GENERATIONS,
) -> np.ndarray:
    """Random mutations of single sides (probability .9, sigma .1); a better mean ratio over the
    matched boxes survives.
    """

    def fitness(candidate: np.ndarray) -> float:
        best = _best_ratio(wh, candidate)
        return float((best * (best > 1 / anchor_t)).mean())

    best_fitness = fitness(anchors)
    for _ in range(generations):
        change = (rng.random(anchors.shape) < 0.9) * rng.random() * rng.standard_normal(
            anchors.shape
        ) * 0.1 + 1
        candidate = (anchors * change.clip(0.3, 3.0)).clip(MIN_SIDE)
        if (score := fitness(candidate)) > best_fitness:
            anchors, best_fitness = candidate, score
    return _by_area(anchors)


def _by_area(anchors: np.ndarray) -> np.ndarray:
    return anchors[anchors.prod(1).argsort(kind="stable")]


def box_sizes(dataset: DetectionDataset, imgsz: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) px of all boxes in images whose long side is imgsz, each image scaled by .9 to 1.1 as
    augmentation would.
    """
    scaled = (
        imgsz
        * dataset.shapes
        / dataset.shapes.max(1, keepdims=True)
        * rng.uniform(0.9, 1.1, (len(dataset.shapes), 1))
    )
    wh = np.concatenate(
        [rows[:, 3:5] * size for rows, size in zip(dataset.labels, scaled, strict=True)]
    )
    return wh[(wh >= MIN_SIDE).all(1)]


def check_anchors(
    dataset: DetectionDataset, model: Any, anchor_t: float, imgsz: int, seed: int = 0
) -> float:
    """Replace the anchors of `model.head` if they match less than 98 % of the boxes and new ones
    match more.

    Returns the best possible recall of the anchors that stay. Whether it may run is the caller's
    decision: only for a new model that is trained from a YAML.
    """
    head, rng = model.head, np.random.default_rng(seed)
    if head.anchors_px is None:
        LOGGER.info(f"autoanchor: skipped, the head {type(head).__name__} has no anchors")
        return 1.0
    anchors = head.anchors_px.reshape(-1, 2).cpu().numpy()
    wh = box_sizes(dataset, imgsz, rng)
    if not len(wh):
        LOGGER.warning("autoanchor: no boxes to compare the anchors with")
        return 0.0
    recall = best_possible_recall(wh, anchors, anchor_t)
    if recall >= ENOUGH:
        LOGGER.info(f"autoanchor: the anchors fit the data (BPR {recall:.4f})")
        return recall
    better = evolve_anchors(wh, kmeans_anchors(wh, len(anchors), rng), anchor_t, rng)
    new_recall = best_possible_recall(wh, better, anchor_t)
    if new_recall <= recall:
        LOGGER.info(
            f"autoanchor: kept the anchors: BPR {recall:.4f}, new ones would give {new_recall:.4f}"
        )
        return recall
    head.set_anchors(torch.tensor(better, dtype=torch.float32).view_as(head.anchors_px))
    LOGGER.info(
        f"autoanchor: new anchors {better.round().astype(int).tolist()}: BPR {recall:.4f} ->"
        f" {new_recall:.4f}"
    )
    return new_recall
