"""What the program asks of a quantiser, and how nodes of a graph belong to layers of ours.

A quantiser is one file: a subclass of `Quantizer` in `QUANTIZERS` under the name of its format.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from deploy.metadata import Metadata
from utils.errors import UserError, suggest
from utils.registry import Registry

QUANTIZERS = Registry("INT8 format")
METHODS = ("minmax", "entropy", "percentile")

Images = Callable[[int], Iterator[np.ndarray]]
"""Called with a number of images; yields calibration batches (1, 3, H, W) float32 in 0..1."""


@dataclass(frozen=True)
class Calibration:
    """What a quantiser measures the ranges of activations on.

    Attributes:
        images: Source of the batches.
        count: Number of images.
        method: How a range is chosen: `minmax`, `entropy` or `percentile`.
        batch: Images of a call of the file; a batch is repeated up to it.
    """

    images: Images
    count: int
    method: str
    batch: int

    def batches(self) -> Iterator[np.ndarray]:
        """Yield batches of the file's own size."""
        for image in self.images(self.count):
            yield np.repeat(image, self.batch, 0) if self.batch > 1 else image


class Quantizer(ABC):
    """Turn an exported float32 file into INT8 files that differ in the layers kept in float.

    The ranges of activations are measured once. The decoding, and the predictions that only it
    reads, always stay in float: rounding pixels and logits to 256 values empties detections.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    methods: ClassVar[tuple[str, ...]] = METHODS

    @abstractmethod
    def __init__(self, path: Path, calibration: Calibration, metadata: Metadata):
        """Measure the ranges of a float32 file's activations."""

    @property
    @abstractmethod
    def layers(self) -> list[str]:
        """Layers that can be quantised, by our names (`model.3.cv1.conv`), in their order."""

    @abstractmethod
    def write(self, path: Path, keep: Collection[str] = ()) -> None:
        """Write an INT8 file, with its metadata.

        Args:
            path: File or folder that is made.
            keep: Layers of `layers` that stay in float.
        """


def layer_of(node: str) -> str:
    """Return the layer that a node of an ONNX graph belongs to.

    The names are those of the trace: `/model.2/m/m.0/cv1/conv/Conv` is of `model.2.m.0.cv1.conv`.
    """
    parts = node.strip("/").split("/")[:-1]
    return ".".join(
        part
        for part, following in zip(parts, [*parts[1:], ""], strict=True)
        if not following.startswith(f"{part}.")
    )


def matching(layers: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the layers that a user names: each itself, or all below it.

    Args:
        layers: Layers of a model.
        names: Names as `model.24` or `model.2.cv1`.

    Raises:
        UserError: A name fits no layer.
    """
    layers = list(layers)
    found: set[str] = set()
    for name in names:
        mine = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not mine:
            raise UserError(
                f"--keep-float {name}: no quantised layer of that name{suggest(name, layers)};"
                f" layers are {layers[0]} to {layers[-1]}, a row such as model.3 stands for all of"
                " its layers (the predictions and the decoding stay in float anyway)"
            )
        found |= mine
    return found


def row_of(layer: str) -> str:
    """Return the row of a layer: `model.3` for `model.3.cv1.conv`."""
    return ".".join(layer.split(".")[:2])
