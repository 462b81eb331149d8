"""TSCODE: classes from coarse maps, boxes from fine ones.

Paper: Zhuang et al., "Task-Specific Context Decoupling for Object Detection", 2023.

Structure, of three neighbouring inputs P(l-1), P(l), P(l+1), all widths that of P(l):
- classes: [3x3/2 of P(l), P(l+1)] -> 1x1 -> 3x3 -> 1x1 to 4 na nc, whose 4 are the 2x2 cells of
  P(l) (pixel shuffle);
- box and objectness, with M a 1x1 of P(l): 3x3/2 of (1x1 of P(l-1) + 1x1 of the up-sampled M) + M +
  1x1 of the up-sampled P(l+1), two 3x3, then a 1x1 each.
Each prediction has implicit vectors as in `DecoupledHead`. `dead_convs`: the 1x1 a level that the
published head carries and never runs; for counting only, it is not trained.
Shapes: n inputs of strides s, 2s, 4s ... give n - 2 levels, those between the first and the last;
maps (N, na, H, W, 5 + nc) as Detect.
What differs: the paper has no anchors.

    - [[1, 74, 75, 76, 83], 1, TSCODE, [nc, anchors]]   # P2 to P6; anchors for P3 to P5; then
      dead_convs

Pruning: the predictions stay whole, all before them is cut; each level's sums tie four
convolutions.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.heads.decoupled import Prediction, by_anchor
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


class FinePrediction(Prediction):
    """A prediction at twice the resolution of its input; one factor a map, not one a
    cell of 2x2.
    """

    def __init__(self, c1: int, c2: int):
        super().__init__(c1, 4 * c2)
        self.multiply = ImplicitM(c2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, 2H, 2W)."""
        return detach_channels(self.multiply(F.pixel_shuffle(self.conv(self.add(x)), 2)))

    def fuse(self) -> nn.Sequential:  # type: ignore[override]  # a convolution and the shuffle
        """Without the vectors: the factor of a map goes into its four outputs."""
        each = ImplicitM(self.conv.out_channels)
        each.implicit = nn.Parameter(
            cast(ImplicitM, self.multiply).implicit.detach().repeat_interleave(4, 1)
        )
        return nn.Sequential(
            fold_implicit(self.conv, cast(ImplicitA, self.add), each), nn.PixelShuffle(2)
        )


def doubled(x: Tensor, like: Tensor) -> Tensor:
    """Nearest up-sampling by 2, to the size of `like`: a map of 5 cells halves to 3."""
    return trimmed(F.interpolate(x, scale_factor=2.0, mode="nearest"), like)


def trimmed(x: Tensor, like: Tensor) -> Tensor:
    """Without the last row or column that `like` does not have."""
    return x[..., : like.shape[2], : like.shape[3]]


class Decoupled(nn.Module):
    """One level."""

    def __init__(
        self, channels: Sequence[int], na: int, nc: int, dead_convs: bool = False, act: Act = "SiLU"
    ):
        """`channels` of the finer, the own and the coarser map."""
        super().__init__()
        fine, c, coarse = channels
        self.na = na
        self.down = Conv(c, c, 3, 2, act=act)
        self.semantic = nn.Sequential(Conv(c + coarse, c, 1, act=act), Conv(c, c, 3, act=act))
        self.own, self.own_up = Conv(c, c, 1, act=act), Conv(c, c, 1, act=act)
        self.from_finer, self.from_coarser = Conv(fine, c, 1, act=act), Conv(coarse, c, 1, act=act)
        self.detail = Conv(c, c, 3, 2, act=act)
        self.places = nn.Sequential(Conv(c, c, 3, act=act), Conv(c, c, 3, act=act))
        self.cls, self.box, self.obj = (
            FinePrediction(c, na * nc),
            Prediction(c, na * 4),
            Prediction(c, na),
        )
        if dead_convs:
            self.dead = Conv(c, c, 1, act=False).requires_grad_(False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Finer, own, coarser map -> (N, na x (5 + nc), H, W) of the own size."""
        finer, own, coarser = maps
        classes = trimmed(self.cls(self.semantic(torch.cat((self.down(own), coarser), 1))), own)
        middle = self.own(own)
        detail = self.detail(self.from_finer(finer) + self.own_up(doubled(middle, finer)))
        boxes = self.places(detail + middle + self.from_coarser(doubled(coarser, own)))
        return by_anchor(self.na, [self.box(boxes), self.obj(boxes), classes])


@BLOCKS.register()
class TSCODE(Detect):
    """Detect whose levels see their neighbours."""

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[float, ...],
        nc: int,
        anchors: Any,
        dead_convs: bool = False,
        act: Act = "SiLU",
    ):
        """`channels`, `strides`: of all inputs, two more than there are levels."""
        triples = iter(zip(channels, channels[1:], channels[2:], strict=False))
        make = lambda _, na: Decoupled(next(triples), na, nc, dead_convs, act)  # noqa: E731  # of the next triple, level by level
        super().__init__(channels[1:-1], strides[1:-1], nc, anchors, make)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, nc: int, anchors: Any, dead_convs: bool = False
    ) -> "TSCODE":
        """`[nc, anchors, dead_convs]`; the inputs are at least three maps from fine to coarse, each
        of half the size."""
        steps = [
            fine * 2 == coarse
            for fine, coarse in zip(context.in_strides, context.in_strides[1:], strict=False)
        ]
        if len(steps) < 2 or not all(steps):
            raise ValueError(
                "TSCODE takes three or more maps from fine to coarse, each of half the size;"
                f" strides {context.in_strides}"
            )
        return cls(context.in_channels, context.in_strides, nc, anchors, dead_convs, context.act)

    def predict(self, x: list[Tensor]) -> list[Tensor]:
        """Map nl + 2 features to nl raw maps; see Detect."""
        return super().predict(cast(Any, [x[level : level + 3] for level in range(self.nl)]))

    def initialise_bias(self, class_counts: Tensor | None = None) -> None:
        """See Detect."""
        for level, stride in zip(self.m, self.stride.tolist(), strict=True):
            assert isinstance(level, Decoupled)
            level.obj.bias.add_(objectness_logit(stride))
            level.cls.bias.view(self.na, self.nc, 4).add_(
                torch.as_tensor(class_logits(self.nc, class_counts)).view(-1, 1)
            )
