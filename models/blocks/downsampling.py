"""Halving a map on two paths: a convolution that moves by its stride, beside a maximum.

    DownC   E-ELAN's step between stages (YOLOv7-E6, -D6, -E6E; Wang, CVPR 2023): 1x1 and a 3x3 of
            stride k on one path, maxima of k x k and a 1x1 on the other, each to half of c2; joined
            (N, C1, H, W) -> (N, C2, H/k, W/k)
    Stem    the first rows of PeleeNet (Wang, NeurIPS 2018) as YOLOv7's baselines have them: a 3x3
            of stride 2 to half of c2; then 1x1 and a 3x3 of stride 2 beside maxima of 2 x 2;
            joined, 1x1: (N, C1, H, W) -> (N, C2, H/4, W/4)

    - [-1, 1, DownC, [320]]   # c2, k
    - [-1, 1, Stem, [128]]    # c2

What differs: PeleeNet's stem halves the channels once more between the 1x1 and the 3x3; here, as in
YOLOv7, both have half of c2.

Pruning: all channels. A channel of Stem's first convolution is pruned with its maximum: the last
convolution loses the inputs of both paths.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class DownC(nn.Module):
    """Convolution of stride k beside k x k maxima; the hidden width is that of the input."""

    def __init__(self, c1: int, c2: int, k: int = 2, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = Conv(c1, c1, 1, act=act)
        self.cv2 = Conv(c1, c2 // 2, 3, k, act=act)
        self.cv3 = Conv(c1, c2 // 2, 1, act=act)
        self.mp = nn.MaxPool2d(k, k)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int, k: int = 2) -> "DownC":
        """Build the block from the row arguments `[c2, k]`."""
        width = context.scale(c2)
        if width % 2:
            raise ValueError(f"c2 is {width}; each path makes half of the channels, so an even one")
        return cls(context.c1, width, k, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/k, W/k)."""
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)


@BLOCKS.register()
class Stem(nn.Module):
    """Stride 4 in one block: a convolution, then a convolution beside a maximum (PeleeNet)."""

    def __init__(self, c1: int, c2: int, act: Act = "SiLU"):
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, 3, 2, act=act)
        self.cv2 = Conv(hidden, hidden, 1, act=act)
        self.cv3 = Conv(hidden, hidden, 3, 2, act=act)
        self.pool = nn.MaxPool2d(2, 2)
        self.cv4 = Conv(2 * hidden, c2, 1, act=act)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int) -> "Stem":
        """Build the block from the row arguments `[c2]`."""
        return cls(context.c1, context.scale(c2), context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/4, W/4)."""
        x = self.cv1(x)
        return self.cv4(torch.cat((self.cv3(self.cv2(x)), self.pool(x)), 1))
