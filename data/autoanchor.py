"""Check that the anchors fit the boxes of a data set, and find better ones where they do not.

New anchors come from k-means, followed by a genetic search as in YOLOv5.
"""

from typing import Any

import numpy as np
import torch

from data.dataset import DetectionDataset
from utils.log import LOGGER

ENOUGH = 0.98  # best possible recall from which anchors are left alone
MIN_SIDE = 2.0  # px; boxes with a shorter side are left out
GENERATIONS = 1000
ITERATIONS = 30


def best_possible_recall(wh: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    """Return the share of the boxes that some anchor matches, 0..1.

    Args:
        wh: Width and height of the boxes, (n, 2), pixels.
        anchors: Width and height of the anchors, (k, 2), pixels.
        anchor_t: Ratio of box and anchor, or anchor and box, below which a side matches; both
            sides must.
    """
    return float((_best_ratio(wh, anchors) > 1 / anchor_t).mean())


def _best_ratio(wh: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return how well the best anchor fits each box, (n,) in 0..1; 1 is the same size.

    The fit of an anchor is the smaller ratio of its two sides, each taken as smaller / larger.
    """
    ratio = wh[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(2).max(1)


def kmeans_anchors(wh: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return cluster centres of the boxes, (count, 2) pixels, ordered by area.

    Lloyd's algorithm runs on sides divided by their standard deviation.

    Args:
        wh: Width and height of the boxes, (n, 2), pixels.
        count: Number of clusters.
        rng: Generator of the first centres.
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
    """Improve anchors by random mutations of single sides; return them ordered by area.

    A side mutates with probability 0.9 by a factor of standard deviation up to 0.1. A mutation is
    kept where it raises the mean over the boxes of the best ratio, with 0 for unmatched boxes.

    Args:
        wh: Width and height of the boxes, (n, 2), pixels.
        anchors: Anchors to start from, (k, 2), pixels.
        anchor_t: Largest ratio of the sides of a box and a matching anchor.
        rng: Generator of the mutations.
        generations: Number of mutations that are tried.
    """

    def fitness(candidate: np.ndarray) -> float:
        best = _best_ratio(wh, candidate)
        return float((best * (best > 1 / anchor_t)).mean())

    best_fitness = fitness(anchors)
    for _ in range(generations):
        mutated = rng.random(anchors.shape) < 0.9
        strength = rng.random()
        change = mutated * strength * rng.standard_normal(anchors.shape) * 0.1 + 1
        candidate = (anchors * change.clip(0.3, 3.0)).clip(MIN_SIDE)
        if (score := fitness(candidate)) > best_fitness:
            anchors, best_fitness = candidate, score
    return _by_area(anchors)


def _by_area(anchors: np.ndarray) -> np.ndarray:
    """Return the anchors ordered by area, the smallest first."""
    return anchors[anchors.prod(1).argsort(kind="stable")]


def box_sizes(dataset: DetectionDataset, imgsz: int, rng: np.random.Generator) -> np.ndarray:
    """Return width and height of all boxes, (n, 2) pixels, in images whose long side is `imgsz`.

    Each image is scaled by a random factor of 0.9 to 1.1, as augmentation would. Boxes with a side
    below `MIN_SIDE` are left out.
    """
    shapes = dataset.shapes
    jitter = rng.uniform(0.9, 1.1, (len(shapes), 1))
    sizes = imgsz * shapes / shapes.max(1, keepdims=True) * jitter
    boxes = [rows[:, 3:5] * size for rows, size in zip(dataset.labels, sizes, strict=True)]
    wh = np.concatenate(boxes)
    return wh[(wh >= MIN_SIDE).all(1)]


def check_anchors(
    dataset: DetectionDataset,
    model: Any,
    anchor_t: float,
    imgsz: int,
    seed: int = 0,
    replace: bool = True,
    remedy: str = "",
) -> float:
    """Log the best possible recall of a model's anchors; replace them where too few boxes match.

    Too few are less than `ENOUGH`, and new anchors are taken only where they match more. Weights
    are trained for their anchors, so `replace` is for a new model, or where the user asks for it.

    Args:
        dataset: Data set with the boxes.
        model: Model with a `head`; a head without anchors is left unchanged.
        anchor_t: Largest ratio of the sides of a box and a matching anchor.
        imgsz: Long side of the images in training, pixels.
        seed: Seed of the search.
        replace: Whether new anchors may be set.
        remedy: What the user may do where they may not, for the warning.

    Returns:
        The best possible recall of the anchors that the model has now; 1 without anchors, 0 without
        boxes.
    """
    head, rng = model.head, np.random.default_rng(seed)
    if head.anchors_px is None:
        LOGGER.info(f"autoanchor: skipped, the head {type(head).__name__} has no anchors")
        return 1.0
    anchors = head.anchors_px.reshape(-1, 2).cpu().numpy()
    wh = box_sizes(dataset, imgsz, rng)
    if not len(wh):
        LOGGER.warning(
            f"autoanchor: no box has sides of at least {MIN_SIDE:g} px at {imgsz} px, there is"
            " nothing to compare the anchors with"
        )
        return 0.0
    recall = best_possible_recall(wh, anchors, anchor_t)
    if recall >= ENOUGH:
        LOGGER.info(f"autoanchor: the anchors fit the data (best possible recall {recall:.4f})")
        return recall
    if replace:
        return _replace(head, wh, anchor_t, rng, recall)
    LOGGER.warning(
        f"autoanchor: the anchors match {recall:.1%} of the boxes only (best possible recall"
        f" {recall:.4f}, {ENOUGH} is good); the others are hardly learnt{remedy}"
    )
    return recall


def _replace(
    head: Any, wh: np.ndarray, anchor_t: float, rng: np.random.Generator, recall: float
) -> float:
    """Set new anchors where they match more boxes; return the recall of those that are set.

    Args:
        head: Head whose anchors match too few boxes.
        wh: Width and height of the boxes, (n, 2), pixels.
        anchor_t: Largest ratio of the sides of a box and a matching anchor.
        rng: Generator of the search.
        recall: Best possible recall of the present anchors.
    """
    count = head.anchors_px.reshape(-1, 2).shape[0]
    better = evolve_anchors(wh, kmeans_anchors(wh, count, rng), anchor_t, rng)
    new_recall = best_possible_recall(wh, better, anchor_t)
    if new_recall <= recall:
        LOGGER.warning(
            f"autoanchor: kept the anchors: best possible recall {recall:.4f}, new ones would give"
            f" {new_recall:.4f}; a larger anchor_t (now {anchor_t:g}) or --imgsz matches more boxes"
        )
        return recall
    head.set_anchors(torch.tensor(better, dtype=torch.float32).view_as(head.anchors_px))
    LOGGER.info(
        f"autoanchor: new anchors {better.round().astype(int).tolist()}: best possible recall"
        f" {recall:.4f} -> {new_recall:.4f}"
    )
    return new_recall
