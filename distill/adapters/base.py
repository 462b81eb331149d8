"""Base class and registry of the adapters between a student's layer and its teacher's.

    ADAPTERS["closed-form"](pair)   one instance for each pair of layers

All feature losses of a run share the adapters. An adapter is thrown away after the training.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from utils.registry import Registry

ADAPTERS = Registry("adapter")


@dataclass(frozen=True, eq=False)
class LayerPair:
    """A layer of the student and the layer of the teacher that it is compared with.

    Attributes:
        student, teacher: Names of the layers, as the user gave them.
        channels: Numbers of channels (student, teacher).
        kept: Channels of the teacher's layer that are those of the student's layer, int64
            (student channels,). None where the student's layer was not cut from the teacher's.
    """

    student: str
    teacher: str
    channels: tuple[int, int]
    kept: Tensor | None = None

    def __str__(self) -> str:
        return f"student {self.student} - teacher {self.teacher}"


class Adapter(nn.Module, ABC):
    """Base class of the adapters.

    Call: `adapter(student (N, Cs, H, W), teacher (N, Ct, H, W))` -> two maps of `channels`
    channels. Maps are float32 or float64, the teacher's without gradient.
    """

    waits: ClassVar[bool] = False
    """True if the adapter has to observe some batches before its first use."""
    trained_apart: ClassVar[bool] = False
    """True if the adapter's weights have an optimizer of their own (`distill.apart`)."""

    def __init__(self, pair: LayerPair):
        super().__init__()
        self.pair = pair
        self.channels = pair.channels[1]

    def observe(self, student: Tensor, teacher: Tensor) -> None:
        """Take note of the maps of a training batch, both without gradient."""

    def solve(self) -> None:
        """Renew the adapter from all observed batches."""

    @property
    def kernel(self) -> Tensor | None:
        """Weights that change over the training; None where there are none."""
        return None

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps with the same channels; see the class for shapes."""
