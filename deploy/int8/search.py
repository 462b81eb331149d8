"""Find the layers that cost most in INT8, and keep them in float until the accuracy is met."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from deploy.exporters import EXPORTERS
from deploy.int8.base import Quantizer, row_of
from deploy.runtimes import Runtime, load_runtime

Accuracy = Callable[[Runtime], float]
"""mAP50-95 of a file, 0..1."""


@dataclass(frozen=True)
class Found:
    """Result of the search.

    Attributes:
        kept: Layers that stay in float.
        accuracy: mAP50-95 of the file.
        rows: Rows that were given up, the most costly first.
    """

    kept: frozenset[str]
    accuracy: float
    rows: tuple[str, ...]


def error_of(runtime: Runtime, images: Tensor, wanted: Tensor) -> float:
    """Return how far the confidences of a file are from the float file's, relative to their size.

    Each box counts by the confidence that the float file gives it: most of the thousands of
    boxes are background, and whatever happens to them does no harm.
    """
    found = runtime(images).decoded
    weight = wanted[..., 4:5] * wanted[..., 5:].amax(-1, keepdim=True)
    scores = ((found - wanted)[..., 4:].abs() * weight).sum() / weight.sum()
    size = wanted[..., 2:4].amax(-1, keepdim=True).clamp(1.0)
    places = ((found - wanted)[..., :4].abs() / size * weight).sum() / weight.sum()
    return float(scores + places)


def costs_of_rows(
    quantizer: Quantizer, folder: Path, images: Tensor, wanted: Tensor, keep: frozenset[str]
) -> list[str]:
    """Return the rows by what INT8 costs there, the most costly first.

    Each row in turn stays in float, all others are INT8; the row without which the error falls most
    costs most. No labels are needed.

    Args:
        quantizer: Quantiser of the file.
        folder: Place of the trial files.
        images: (N, 3, H, W) in 0..1.
        wanted: Output of the float file on the images.
        keep: Layers that stay in float anyway.
    """
    rows = list(dict.fromkeys(row_of(layer) for layer in quantizer.layers if layer not in keep))
    errors: dict[str, float] = {}
    for row in tqdm(rows, desc="INT8: cost of each row", leave=False, dynamic_ncols=True):
        kept = keep | {layer for layer in quantizer.layers if row_of(layer) == row}
        errors[row] = error_of(_trial(quantizer, folder, kept, row), images, wanted)
    return sorted(rows, key=errors.__getitem__)


def search(
    quantizer: Quantizer,
    folder: Path,
    accuracy: Accuracy,
    needed: float,
    ranked: Callable[[], Sequence[str]],
    keep: frozenset[str],
) -> Found:
    """Keep more and more rows in float until the accuracy is met.

    The number of rows doubles from step to step, so few validations are needed; between the last
    two steps the smallest number that does is found by halving.

    Args:
        quantizer: Quantiser of the file.
        folder: Place of the trial files.
        accuracy: Validates a file.
        needed: Least mAP50-95.
        ranked: Returns the rows, the most costly first; called only where rows must be given up.
        keep: Layers that stay in float anyway.

    Returns:
        The first set that meets the accuracy; all rows in float where none does.
    """
    reached = accuracy(_trial(quantizer, folder, keep, "all"))
    if reached >= needed:
        return Found(keep, reached, ())
    rows = list(ranked())
    results: dict[int, Found] = {}

    def try_first(count: int) -> bool:
        given_up = set(rows[:count])
        kept = keep | {layer for layer in quantizer.layers if row_of(layer) in given_up}
        reached = accuracy(_trial(quantizer, folder, kept, f"first{count}"))
        results[count] = Found(frozenset(kept), reached, tuple(rows[:count]))
        return reached >= needed

    low, high = 0, 1
    while high < len(rows) and not try_first(high):
        low, high = high, min(2 * high, len(rows))
    if high not in results:
        try_first(high)
    while high - low > 1:
        middle = (low + high) // 2
        if try_first(middle):
            high = middle
        else:
            low = middle
    return results[high]


def _trial(
    quantizer: Quantizer, folder: Path, keep: frozenset[str] | set[str], name: str
) -> Runtime:
    """Return an INT8 file with some layers in float, loaded."""
    path = folder / f"{name}{EXPORTERS[quantizer.name].suffix}"
    quantizer.write(path, keep)
    return load_runtime(path)


def float_outputs(runtime: Runtime, images: Tensor) -> Tensor:
    """Return the decoded output of a file on images."""
    with torch.no_grad():
        return runtime(images).decoded
