"""Slim neck: half of a convolution's channels made by a cheap depthwise one.

Paper: Li et al., "Slim-neck by GSConv", 2022.

Structure: GSConv is a convolution to c2 / 2 and a depthwise 5x5 of its result, joined. VoVGSCSP:
two 1x1 to e c2; one path goes through n steps of (GSConv 1x1, GSConv 3x3 without activation) + (1x1
without activation); joined, 1x1.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: the paper shuffles what GSConv joins. The next dense layer can read the channels in
any order, so the shuffle is left out: the same functions, with the next layer's inputs in another
order (weights from elsewhere have to be reordered so). `dead_convs`: the 3x3 convolution that the
published VoVGSCSP carries and never runs; for counting only, it is not trained.

    - [-1, 1, GSConv, [128, 3, 2]]   # c2, k, s, g, act
    - [-1, 1, VoVGSCSP, [128]]       # c2, e, dead_convs; the repeats are n

Pruning: the depthwise convolution follows the first half, everything else is plain. Dead
convolutions stay whole.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.blocks.ghost import GhostConv
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class GSConv(GhostConv):
    """Convolution, and a depthwise one of its result: without the shuffle the same as a ghost
    convolution."""


class GSBottleneck(nn.Module):
    """Two GSConvs and a 1x1 beside them, added."""

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = GSConv(channels, channels, 1, act=act)
        self.cv2 = GSConv(channels, channels, 3, act=False)
        self.shortcut = Conv(channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return self.cv2(self.cv1(x)) + self.shortcut(x)


@BLOCKS.register()
class VoVGSCSP(nn.Module):
    """Cross-stage-partial block of GS bottlenecks."""

    repeats_inside = True

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        e: float = 0.5,
        dead_convs: bool = False,
        act: Act = "SiLU",
    ):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(c1, hidden, 1, act=act)
        self.m = nn.Sequential(*(GSBottleneck(hidden, act) for _ in range(n)))
        self.cv3 = Conv(2 * hidden, c2, 1, act=act)
        if dead_convs:
            self.dead = Conv(hidden, hidden, 3, act=False).requires_grad_(False)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, e: float = 0.5, dead_convs: bool = False
    ) -> "VoVGSCSP":
        """`[c2, e, dead_convs]`; the repeats are the number of bottlenecks."""
        return cls(context.c1, context.scale(c2), context.repeats, e, dead_convs, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
