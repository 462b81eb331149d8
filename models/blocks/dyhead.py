"""DyHead: attention over levels, places and channels in front of a detection head.

Papers: Dai et al., "Dynamic Head: Unifying Object Detection Heads with Attentions", CVPR 2021;
DyReLU: Chen et al., ECCV 2020.

Structure: n blocks. In a block each level predicts shifts and weights of taps from its own map
(`Offsets`). With them run three deformable 3x3 kernels, each followed by a GroupNorm(16), which all
levels share: one on the finer map (stride 2), one on the level's own map, one on the coarser map
(then up-sampled, bilinear). Each result is weighed by one number: mean over the map -> 1x1 to 1 ->
ReLU -> hard sigmoid. The average of the results goes through DyReLU: max(a1 x + b1, a2 x + b2) for
each channel, where a and b come from the mean over the map (1x1 to C / 4, ReLU, 1x1 to 4 C, hard
sigmoid).
Shapes: [(N, C, H/2^i, W/2^i), ...] -> the same: a row with several outputs. C is a multiple of 16.
What differs: the 1x1 to 4 C is four convolutions to C each; for the coarser map the shifts and
weights are averaged to the size of that map, in cells of that map.

    - [[31, 32, 33], 2, DyHead, []]   # the repeats are n; one output index for each input

Pruning: inputs of the block are pruned as inputs of any convolution. Inside, whole groups of the
GroupNorms are removed (C / 16 channels at a time, the groups become fewer); gates and offsets tie
nothing and stay.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.deformable import DeformableConv2d, Offsets
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext

NORM_GROUPS = 16  # groups of each GroupNorm


class MovingNorm(nn.Module):
    """Deformable 3x3 without bias, GroupNorm."""

    def __init__(self, channels: int, s: int = 1):
        super().__init__()
        self.conv = DeformableConv2d(channels, channels, 3, s, 1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/s, W/s)."""
        return self.norm(self.conv(x, offset, mask))


class ScaleGate(nn.Module):
    """Weight of a whole map, 0.5 to 1: one number for each image (equation 3)."""

    no_prune = {"conv": "one number weighs all channels"}

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        weight = F.hardsigmoid(F.relu(self.conv(x.mean((2, 3), keepdim=True))))
        return x * detach_channels(weight)


class DyReLU(nn.Module):
    """Maximum of two lines for each channel, which depend on the whole map (equation 5)."""

    def __init__(self, channels: int, ratio: int = 4):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // ratio, 1)
        self.slope1, self.slope2, self.shift1, self.shift2 = (
            nn.Conv2d(channels // ratio, channels, 1) for _ in range(4)
        )
        for conv in (self.squeeze, self.slope1, self.slope2, self.shift1, self.shift2):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        slope1 = 2 * self._around_zero(self.slope1(y)) + 1
        slope2 = 2 * self._around_zero(self.slope2(y))
        return torch.maximum(
            x * slope1 + self._around_zero(self.shift1(y)),
            x * slope2 + self._around_zero(self.shift2(y)),
        )

    @staticmethod
    def _around_zero(x: Tensor) -> Tensor:
        """Squash a tensor to -0.5..0.5."""
        return F.hardsigmoid(x) - 0.5


class DyBlock(nn.Module):
    """One round of the three attentions."""

    def __init__(self, channels: int):
        super().__init__()
        self.offset = Offsets(channels)
        self.finer = MovingNorm(channels, 2)
        self.own = MovingNorm(channels)
        self.coarser = MovingNorm(channels)
        self.scale = ScaleGate(channels)
        self.act = DyReLU(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the maps of all levels to maps of the same shapes."""
        results = []
        for level, x in enumerate(maps):
            offset, mask = self.offset(x)
            total, summands = self.scale(self.own(x, offset, mask)), 1
            if level > 0:
                total = total + self.scale(self.finer(maps[level - 1], offset, mask))
                summands += 1
            if level < len(maps) - 1:
                offset, mask = F.avg_pool2d(offset, 2), F.avg_pool2d(mask, 2)
                coarser = self.coarser(maps[level + 1], offset, mask)
                enlarged = F.interpolate(coarser, size=x.shape[2:], mode="bilinear")
                total = total + self.scale(enlarged)
                summands += 1
            results.append(self.act(total / summands))
        return results


@BLOCKS.register()
class DyHead(nn.Module):
    """n DyBlocks; the finest level comes first."""

    keeps_channels = True

    repeats_inside = True

    def __init__(self, channels: int, n: int = 1):
        super().__init__()
        self.blocks = nn.Sequential(*(DyBlock(channels) for _ in range(n)))

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "DyHead":
        """Build the block; its row has no arguments, and the repeats are the number of blocks."""
        strides = context.in_strides
        if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
            raise ValueError(
                "DyHead takes levels from fine to coarse, each of half the size; strides"
                f" {context.in_strides}"
            )
        channels = context.in_channels
        if len(set(channels)) != 1 or channels[0] % NORM_GROUPS or len(channels) < 2:
            raise ValueError(
                f"DyHead takes at least two levels of one width, a multiple of {NORM_GROUPS}, not"
                f" {context.in_channels}; put a 1x1 Conv before each"
            )
        return cls(channels[0], context.repeats)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Map [(N, C, Hi, Wi)] to the same shapes."""
        return self.blocks(x)
