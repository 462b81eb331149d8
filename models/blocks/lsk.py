"""LSKBlock: a gate that picks, place by place, between a small and a large field of view.

Paper: Li et al., "Large Selective Kernel Network for Remote Sensing Object Detection", ICCV 2023,
equations 2 to 8.

Structure: depthwise 5x5, after it depthwise 7x7 of dilation 3; a 1x1 of each to C / 2; mean and
maximum over all of these channels give two maps; 7x7 from 2 to 2 maps, sigmoid; the halves weighed
by them and added; 1x1 to C; times the input. Biases, no batch norms.
Shapes: (N, C, H, W) -> the same.
What differs: nothing known.

    - [-1, 1, LSKBlock, []]

Pruning: C goes with the input, the halves together. Their mean and maximum change with their
number, so that a cut block is not exactly one with zeros (`inexact`); the 2 maps stay.
"""

import torch
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


@BLOCKS.register()
class LSKBlock(nn.Module):
    """Large selective kernel attention."""

    no_prune = {"select": "two gates, one for each kernel"}
    inexact = "it weighs its halves by their mean and maximum over all channels"

    def __init__(self, channels: int):
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.half_near = nn.Conv2d(channels, channels // 2, 1)
        self.half_far = nn.Conv2d(channels, channels // 2, 1)
        self.select = nn.Conv2d(2, 2, 7, padding=3)
        self.join = nn.Conv2d(channels // 2, channels, 1)

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "LSKBlock":
        """`[]`."""
        return cls(context.c1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        near = self.near(x)
        near, far = self.half_near(near), self.half_far(self.far(near))
        both = torch.cat((near, far), 1)
        summary = torch.cat(
            (
                detach_channels(both.mean(1, keepdim=True)),
                detach_channels(both.amax(1, keepdim=True)),
            ),
            1,
        )
        share = detach_channels(self.select(summary).sigmoid())
        return x * self.join(near * share[:, :1] + far * share[:, 1:])
