"""Attentional scale-sequence fusion: levels as a sequence of scales, gates on channels and places.

Paper: Kang et al., "ASF-YOLO", 2023.

Structure:

    Zoom_cat          three levels at the size of the middle one, side by side; the large level is
                      reduced by the sum of max and average pooling
    ScalSeq           1x1 of each level to c2, all at the size of the largest level, one shared 1x1
                      + batch norm + LeakyReLU, the maximum over the levels
    attention_model   ECA on the first input, the second one added; then a gate for the rows and
                      one for the columns

    - [[3, 4, 5], 1, Zoom_cat, []]
    - [[2, 3, 4], 1, ScalSeq, [256]]
    - [[15, 24], 1, attention_model, []]

Shapes: Zoom_cat gives (N, sum of Ci, H, W) of the middle level; ScalSeq gives (N, C2, H, W) of the
largest level; attention_model gives the (N, C, H, W) of its inputs.

What differs: the 3-D 1x1x1 convolution over the stacked scales is a 2-D convolution over the scales
as a batch, with the same result and statistics.

Pruning: all channels. The channel gate is ECA's and depends on neighbouring channels, which pruning
changes: see `ECA.inexact`.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.attention import ECA
from models.blocks.conv import Conv, fold_bn
from models.blocks.pooling import averaged, strongest
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register("Zoom_cat")
class ZoomCat(nn.Module):
    """Three levels side by side, at the size of the middle one."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "ZoomCat":
        """Build the block; its row has no arguments, and `from` is [large, middle, small]."""
        return cls()

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of three (N, Ci, Hi, Wi) to (N, sum of Ci, H, W) of the middle one."""
        large, middle, small = x
        size = (middle.shape[2], middle.shape[3])
        reduced = strongest(large, size) + averaged(large, size)
        enlarged = F.interpolate(small, size=size, mode="nearest")
        return torch.cat((reduced, middle, enlarged), 1)


@BLOCKS.register()
class ScalSeq(nn.Module):
    """Maximum over several scales, cell by cell."""

    def __init__(self, channels: Sequence[int], c2: int, act: Act = "SiLU"):
        super().__init__()
        self.align = nn.ModuleList(
            nn.Identity() if i == 0 and c == c2 else Conv(c, c2, act=act)
            for i, c in enumerate(channels)
        )
        self.conv = nn.Conv2d(c2, c2, 1)  # with a bias before the batch norm, as published
        self.bn: nn.Module = nn.BatchNorm2d(c2)
        self.act = nn.LeakyReLU(0.1)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int) -> "ScalSeq":
        """Build the block from the row arguments `[c2]`; `from` lists levels, the largest first."""
        return cls(context.in_channels, context.scale(c2), context.act)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, Hi, Wi) to (N, C2, H, W) of the first."""
        n, size = len(x[0]), x[0].shape[2:]
        first, *others = [align(level) for align, level in zip(self.align, x, strict=True)]
        enlarged = [F.interpolate(level, size=size, mode="nearest") for level in others]
        scales = torch.cat([first, *enlarged])  # (levels x N, C2, H, W): the scales as a batch
        y = self.act(self.bn(self.conv(scales)))
        best = y[:n]
        for start in range(n, len(x) * n, n):
            best = torch.maximum(best, y[start : start + n])
        return best

    def fuse(self) -> nn.Module:
        """Return a copy with the batch norm folded into the shared convolution."""
        folded = copy.deepcopy(self)
        folded.conv = fold_bn(self.conv, cast(nn.BatchNorm2d, self.bn))
        folded.bn = nn.Identity()
        return folded


class LocalAttention(nn.Module):
    """A gate for each row and one for each column of a map (coordinate attention, Hou 2021).

    The gate of a row comes from the mean along the row, that of a column from the mean along the
    column.
    """

    def __init__(self, c: int, reduction: int = 16):
        super().__init__()
        hidden = max(c // reduction, 1)
        self.squeeze = nn.Conv2d(c, hidden, 1, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU()
        self.rows = nn.Conv2d(hidden, c, 1, bias=False)
        self.columns = nn.Conv2d(hidden, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        height = x.shape[2]
        row_means = x.mean(3, keepdim=True)
        column_means = x.mean(2, keepdim=True).transpose(2, 3)
        means = torch.cat((row_means, column_means), 2)  # (N, C, H + W, 1)
        y = self.act(self.bn(self.squeeze(means)))
        gated = x * self.rows(y[:, :, :height]).sigmoid()
        return gated * self.columns(y[:, :, height:].transpose(2, 3)).sigmoid()

    def fuse(self) -> nn.Module:
        """Return a copy with the batch norm folded into the convolution before it."""
        folded = copy.deepcopy(self)
        folded.squeeze = fold_bn(self.squeeze, cast(nn.BatchNorm2d, self.bn))
        folded.bn = nn.Identity()
        return folded


@BLOCKS.register("attention_model")
class ChannelLocalAttention(nn.Module):
    """Sum of two paths, the first gated by channel, the sum gated by place."""

    def __init__(self, c: int):
        super().__init__()
        self.channel = ECA(c)
        self.local = LocalAttention(c)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int | None = None) -> "ChannelLocalAttention":
        """Build the block; `from` is [detail, scale sequence], equally wide.

        Published files write a width `c2` in the row; the width has no meaning.
        """
        if len(context.in_channels) != 2 or len(set(context.in_channels)) != 1:
            raise ValueError(
                f"it needs two inputs of the same width, not {list(context.in_channels)}"
            )
        return cls(context.in_channels[0])

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map two maps (N, C, H, W) to one of the same shape."""
        return self.local(self.channel(x[0]) + x[1])
