"""What the program may ask of a detection head, and what a head gives in eval mode.

A head is one file: a subclass of `Head` in `BLOCKS` owns its predictions, its decoding, its loss
and whatever the checkpoint stores beside its weights. See docs/custom_head.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from utils.config import Hyp
from utils.errors import UserError


class Detections(NamedTuple):
    """Output of a head, and so of a model, in eval mode."""

    decoded: Tensor
    """(N, M, 5 + nc): centre and size in pixels, then objectness and class scores in 0..1."""
    raw: list[Tensor]
    """One raw map a level, the finest first; the shape is the head's own."""


class Head(nn.Module, ABC):
    """Turn feature maps of several strides into raw maps, boxes and a loss.

    `nc` is the number of classes, `nl` the number of levels, `stride` (nl,) the pixels a cell of
    each level.
    """

    is_head: ClassVar[bool] = True
    nc: int
    nl: int
    stride: Tensor

    def __init__(self, nc: int, strides: Sequence[float]):
        """Store the number of classes and the stride of each level, the finest first."""
        super().__init__()
        self.nc, self.nl = nc, len(strides)
        self.register_buffer("stride", torch.tensor(strides), persistent=False)

    def forward(self, x: list[Tensor]) -> list[Tensor] | Detections:
        """Map features [(N, Ci, Hi, Wi)] to raw maps in training, to `Detections` in eval mode."""
        maps = self.predict(x)
        return maps if self.training else Detections(self.decode(maps), maps)

    @abstractmethod
    def predict(self, x: list[Tensor]) -> list[Tensor]:
        """Return the raw map of each level; the first four dimensions are (N, A, H, W)."""

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps to (N, M, 5 + nc) as in `Detections`, M = the sum of A x H x W."""

    @abstractmethod
    def build_loss(self, hyp: Hyp, kind: str | None = None) -> nn.Module:
        """Return the loss: `loss(raw_maps, targets) -> (loss, parts)`.

        Args:
            hyp: Gains of the run, already scaled (`hyp.scaled(...)`).
            kind: Assignment of targets, `yolo` or `ota`; None takes `hyp.loss`. A head with one
                assignment only ignores it.

        Returns:
            A module. `raw_maps` come from `predict`; `targets` are (M, 6): image, class, x, y, w, h
            normalised to 0..1. `loss` is a scalar multiplied by the batch size; `parts` is a dict
            of detached scalars, not multiplied, and gives the columns of `results.csv`.
        """

    def initialise_bias(self, class_counts: Tensor | None = None) -> None:
        """Set the biases of the predictions to expected frequencies; a plain head keeps them.

        `class_counts` (nc,) counts the labels of each class; None makes all classes alike.
        """

    @property
    def anchors_px(self) -> Tensor | None:
        """Anchors (nl, na, 2) in pixels; None for a head without anchors."""
        return None

    def set_anchors(self, pixels: Tensor) -> None:
        """Replace the anchors by (nl, na, 2) in pixels, the smallest level first.

        Raises:
            UserError: The head has no anchors.
        """
        raise UserError(f"anchors: the head {type(self).__name__} has none to set")

    def state(self) -> dict[str, Any]:
        """Return what the checkpoint stores beside the weights: plain lists and numbers.

        A head with more to store returns `super().state() | {...}`.
        """
        anchors = self.anchors_px
        return {
            "stride": self.stride.tolist(),
            "anchors": None if anchors is None else anchors.flatten(1).tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; other keys of the mapping are left alone."""
        self.stride.copy_(torch.tensor(state["stride"]).view_as(self.stride))
        anchors = self.anchors_px
        if anchors is not None:
            self.set_anchors(torch.tensor(state["anchors"]).view_as(anchors))

    def refresh(self) -> None:
        """Bring values that are computed from others up to date after `load_state_dict`."""
