"""Slim neck: half of a convolution's channels come from a cheap depthwise convolution.

Paper: Li et al., "Slim-neck by GSConv", 2022.

Structure of GSConv: a convolution to c2 / 2 and a depthwise 5x5 of its result, joined.
Structure of VoVGSCSP: two 1x1 to e c2; one path goes through n steps of (GSConv 1x1, GSConv 3x3
without activation) + (1x1 without activation); joined, 1x1.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: the paper shuffles the channels that GSConv joins. The next dense layer can read the
channels in any order, so the shuffle is left out: the block computes the same functions, with the
inputs of the next layer in another order (weights from elsewhere have to be reordered accordingly).
`dead_convs` adds the 3x3 convolution that the published VoVGSCSP carries and never runs; the
convolution exists for counting only and is not trained.

    - [-1, 1, GSConv, [128, 3, 2]]   # c2, k, s, g, act
    - [-1, 1, VoVGSCSP, [128]]       # c2, e, dead_convs; the repeats are n

Pruning: the depthwise convolution follows the first half; all other channels are pruned as usual.
Dead convolutions stay whole.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.blocks.ghost import GhostConv
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class GSConv(GhostConv):
    """Convolution, and a depthwise convolution of its result.

    Without the shuffle the block equals a ghost convolution.
    """


class GSBottleneck(nn.Module):
    """Two GSConvs and a 1x1 beside them, added."""

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = GSConv(channels, channels, 1, act=act)
        self.cv2 = GSConv(channels, channels, 3, act=False)
        self.shortcut = Conv(channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
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
        """Build the block from `[c2, e, dead_convs]`; the repeats count the bottlenecks."""
        return cls(context.c1, context.scale(c2), context.repeats, e, dead_convs, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
