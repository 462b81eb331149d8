"""Small data sets that tests write for themselves."""

from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """Write a smooth random image; PNG files keep its pixels exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
    return path


def write_set(
    root: Path, shapes: list[tuple[int, int]], split: str = "train", boxes: int = 2, nc: int = 3
) -> dict:
    """Write images of the given (width, height) with `boxes` labels each.

    Returns:
        The content of the data YAML.
    """
    for number, (width, height) in enumerate(shapes):
        write_image(root / "images" / split / f"{number:03d}.png", width, height, seed=number)
        label = root / "labels" / split / f"{number:03d}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([1, number])
        rows = [
            f"{(number + i) % nc} {x:.6f} {y:.6f} 0.3 0.4\n"
            for i, (x, y) in enumerate(rng.uniform(0.3, 0.7, (boxes, 2)))
        ]
        label.write_text("".join(rows))
    return {"path": str(root), split: f"images/{split}", "names": [f"c{i}" for i in range(nc)]}
