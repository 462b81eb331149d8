"""Real images to try a model on: of its data set, or the photos of the demo set."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.augment import letterbox
from data.config import load_data
from data.demo import ASSETS
from data.images import read_image
from models.checkpoint import load_checkpoint
from models.importer import is_official
from utils.errors import UserError
from utils.images import unit_range


class Photos(NamedTuple):
    """Images and where they are from."""

    images: Tensor
    """(N, 3, H, W) float32 in 0..1."""
    source: str


def trained_on(weights: Path | str) -> str:
    """Return the data YAML that a checkpoint was trained with, "" where it does not say so."""
    if is_official(Path(weights)):
        return ""
    args = load_checkpoint(weights).get("args", {})
    data = args.get("data", "") if isinstance(args, dict) else ""
    return data if isinstance(data, str) else ""


def verification_photos(data: str, weights: str, size: tuple[int, int], count: int) -> Photos:
    """Return letterboxed validation images of a data set, else photos of the demo set.

    Args:
        data: Data YAML that the user names; empty: what the weights were trained with.
        weights: Checkpoint.
        size: Height and width of the images in pixels.
        count: Number of images.

    Raises:
        UserError: The data set that the user names has no readable image.
    """
    named = data or trained_on(weights)
    if named:
        try:
            files = load_data(named).images("val")
            return Photos(letterboxed(files, size, count), f"of {named} (val)")
        except UserError:
            if data:
                raise
    photos = sorted(ASSETS.glob("*.jpg"))
    return Photos(letterboxed(photos, size, count), "of the demo set's photos")


def letterboxed(files: Sequence[Path], size: tuple[int, int], count: int) -> Tensor:
    """Return the first readable images, letterboxed, (count, 3, H, W) float32 in 0..1.

    Fewer files are repeated.

    Raises:
        UserError: None can be read.
    """
    found: list[np.ndarray] = []
    for file in files:
        if len(found) == count:
            break
        try:
            found.append(letterbox(read_image(Path(file)), *size)[0])
        except UserError:
            continue
    if not found:
        raise UserError(f"{len(files)} images, none of which can be read")
    chosen = [found[i % len(found)] for i in range(count)]
    return unit_range(torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)).contiguous()
