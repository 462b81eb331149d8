"""LSKBlock: a gate that selects, place by place, between a small and a large field of view.

Paper: Li et al., "Large Selective Kernel Network for Remote Sensing Object Detection", ICCV 2023,
equations 2 to 8.

Structure: depthwise 5x5, after it depthwise 7x7 of dilation 3; a 1x1 of each to C / 2; mean and
maximum over all of these channels give two maps; 7x7 from 2 to 2 maps, sigmoid; the halves are
weighed by them and added; 1x1 to C; times the input. Biases, no batch norms.
Shapes: (N, C, H, W) -> the same.
What differs: nothing known.

    - [-1, 1, LSKBlock, []]

Pruning: the C channels are pruned with the input, the halves together. Mean and maximum change with
the number of channels, so that a pruned block does not exactly equal one with zeros (`inexact`);
the 2 maps stay.
"""

import torch
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


@BLOCKS.register()
class LSKBlock(nn.Module):
    """Large selective kernel attention."""

    keeps_channels = True
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
        """Build the block; its row has no arguments."""
        return cls(context.c1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        small_field = self.near(x)
        near = self.half_near(small_field)
        far = self.half_far(self.far(small_field))
        both = torch.cat((near, far), 1)
        mean = detach_channels(both.mean(1, keepdim=True))
        maximum = detach_channels(both.amax(1, keepdim=True))
        gates = detach_channels(self.select(torch.cat((mean, maximum), 1)).sigmoid())
        return x * self.join(near * gates[:, :1] + far * gates[:, 1:])
