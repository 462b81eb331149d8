"""A detection head with a branch of its own for the classes.

Paper: Ge et al., "YOLOX", 2021 (decoupled head); Wang et al., "You Only Learn One Representation",
2021 (implicit vectors).

Structure, a level: 1x1 to its own width; 3x3 -> classes; another 3x3 -> box and objectness. Each of
the three predictions is a 1x1 with a vector added before and one multiplied after, which vanish in
the deployed form.
Shapes: as Detect, maps (N, na, H, W, 5 + nc).
What differs: YOLOX has no anchors and two 3x3 a branch; this is the form that the YOLOv5 and YOLOv7
combinations use.

    - [[57, 65, 73], 1, DecoupledHead, [nc, anchors]]   # nc, anchors, implicit

Pruning: the predictions stay whole, all before them is cut.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.heads.detect import (
    Detect,
    ImplicitA,
    ImplicitM,
    class_logits,
    fold_implicit,
    objectness_logit,
)
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act, BuildContext


class Prediction(nn.Module):
    """A 1x1 convolution between two implicit vectors (or none)."""

    no_prune = {"conv": "it makes the head's predictions"}

    def __init__(self, c1: int, c2: int, implicit: bool = True):
        super().__init__()
        self.add: nn.Module = ImplicitA(c1) if implicit else nn.Identity()
        self.conv = nn.Conv2d(c1, c2, 1)
        self.multiply: nn.Module = ImplicitM(c2) if implicit else nn.Identity()

    @property
    def bias(self) -> Tensor:
        """(C2,), detached: what `initialise_bias` changes in place."""
        return cast(Tensor, self.conv.bias).detach()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H, W)."""
        return detach_channels(self.multiply(self.conv(self.add(x))))

    def fuse(self) -> nn.Conv2d:
        """The convolution alone."""
        if isinstance(self.add, ImplicitA) and isinstance(self.multiply, ImplicitM):
            return fold_implicit(self.conv, self.add, self.multiply)
        return copy.deepcopy(self.conv)


def by_anchor(na: int, parts: list[Tensor]) -> Tensor:
    """Predictions (N, na x ci, H, W) -> (N, na x sum of ci, H, W), everything of an anchor
    together."""
    n, _, height, width = parts[0].shape
    by_part = [part.view(n, na, -1, height, width) for part in parts]
    return torch.cat(by_part, 2).reshape(n, -1, height, width)


class Branches(nn.Module):
    """One level."""

    def __init__(self, channels: int, na: int, nc: int, implicit: bool = True, act: Act = "SiLU"):
        super().__init__()
        self.na = na
        self.stem = Conv(channels, channels, 1, act=act)
        self.cls_conv = Conv(channels, channels, 3, act=act)
        self.box_conv = Conv(channels, channels, 3, act=act)
        self.cls = Prediction(channels, na * nc, implicit)
        self.box = Prediction(channels, na * 4, implicit)
        self.obj = Prediction(channels, na, implicit)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, na x (5 + nc), H, W)."""
        x = self.stem(x)
        boxes = self.box_conv(x)
        return by_anchor(self.na, [self.box(boxes), self.obj(boxes), self.cls(self.cls_conv(x))])


@BLOCKS.register()
class DecoupledHead(Detect):
    """Detect with `Branches` in the place of its 1x1 convolutions."""

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[float, ...],
        nc: int,
        anchors: Any,
        implicit: bool = True,
        act: Act = "SiLU",
    ):
        super().__init__(
            channels, strides, nc, anchors, lambda c, na: Branches(c, na, nc, implicit, act)
        )

    @classmethod
    def from_yaml(
        cls, context: BuildContext, nc: int, anchors: Any, implicit: bool = True
    ) -> "DecoupledHead":
        """`[nc, anchors, implicit]`."""
        return cls(context.in_channels, context.in_strides, nc, anchors, implicit, context.act)

    def initialise_bias(self, class_counts: Tensor | None = None) -> None:
        """See Detect."""
        for level, stride in zip(self.m, self.stride.tolist(), strict=True):
            assert isinstance(level, Branches)
            level.obj.bias.add_(objectness_logit(stride))
            level.cls.bias.view(self.na, self.nc).add_(class_logits(self.nc, class_counts))
