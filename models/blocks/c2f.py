"""C2f, the cross-stage block of YOLOv8.

Papers: Ultralytics, YOLOv8, 2023; after Wang et al., CSPNet, 2020, and Wang et al., ELAN, 2022.

Structure: a 1x1 convolution gives two halves of width c' = e C2. n steps of two 3x3 convolutions
start from the second half. A last 1x1 joins both halves and the output of each step.
Shapes: (N, C1, H, W) -> (N, C2, H, W).
What differs: the first 1x1 is two convolutions, one for each half. They compute the same from the
same number of parameters, and unlike `chunk` they let the two halves be pruned independently.

    - [-1, 3, C2f, [128, True]]  # c2, shortcut, g, e; the repeats are the number of steps

Pruning: each half and each step is a group of its own; with `shortcut` the second half and all
steps are one group.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.registry import BLOCKS, Act, BuildContext


class TwoConvs(nn.Module):
    """Two 3x3 convolutions, with a residual where asked for."""

    def __init__(self, channels: int, shortcut: bool, g: int = 1, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = Conv(channels, channels, 3, act=act)
        self.cv2 = Conv(channels, channels, 3, g=g, act=act)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@BLOCKS.register()
class C2f(nn.Module):
    """Cross-stage block; see the module."""

    repeats_inside = True

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 1,
        e: float = 0.5,
        act: Act = "SiLU",
    ):
        super().__init__()
        hidden = int(c2 * e)
        self.cv0, self.cv1 = Conv(c1, hidden, act=act), Conv(c1, hidden, act=act)
        self.m = nn.ModuleList(TwoConvs(hidden, shortcut, g, act) for _ in range(n))
        self.cv2 = Conv((2 + n) * hidden, c2, act=act)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, shortcut: bool = False, g: int = 1, e: float = 0.5
    ) -> "C2f":
        """Build the block from `[c2, shortcut, g, e]`; the repeats count the steps."""
        return cls(context.c1, context.scale(c2), context.repeats, shortcut, g, e, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        parts = [self.cv0(x), self.cv1(x)]
        for step in self.m:
            parts.append(step(parts[-1]))
        return self.cv2(torch.cat(parts, 1))
