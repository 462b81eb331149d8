"""Attentional scale-sequence fusion (ASF-YOLO, Kang 2023): levels as a sequence of scales, and a
gate over channels and places.

    Zoom_cat          three levels at the size of the middle one, side by side: large ones by max +
      average pooling
    ScalSeq           1x1 each to c, all at the size of the largest, one shared 1x1 + batch norm +
      LeakyReLU, the maximum of them
    attention_model   ECA on the first input, added to the second; then a gate for rows and one for
      columns

    - [[3, 4, 5], 1, Zoom_cat, []]
    - [[2, 3, 4], 1, ScalSeq, [256]]
    - [[15, 24], 1, attention_model, []]

Shapes: Zoom_cat (N, sum of Ci, H, W), of the middle level; ScalSeq (N, C2, H, W), of the largest;
attention_model (N, C, H, W) as its inputs.

What differs: the 3-D 1x1x1 convolution over the stacked scales is one 2-D convolution over the
scales as a batch, with the same result and statistics.

Pruning: all of it. The channel gate is ECA's, whose neighbours change with a cut: see
`ECA.inexact`.
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
    """Three levels at the size of the middle one."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "ZoomCat":
        """`[]`; `from` is [large, middle, small]."""
        return cls()

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of three (N, Ci, Hi, Wi) -> (N, sum of Ci, H, W) of the middle one."""
        large, middle, small = x
        size = (middle.shape[2], middle.shape[3])
        pooled = strongest(large, size) + averaged(large, size)
        return torch.cat((pooled, middle, F.interpolate(small, size=size, mode="nearest")), 1)


@BLOCKS.register()
class ScalSeq(nn.Module):
    """The strongest of several scales, cell by cell."""

    def __init__(self, channels: Sequence[int], c2: int, act: Act = "SiLU"):
        super().__init__()
        self.align = nn.ModuleList(
            nn.Identity() if i == 0 and c == c2 else Conv(c, c2, act=act)
            for i, c in enumerate(channels)
        )
        self.conv = nn.Conv2d(c2, c2, 1)  # has a bias before its batch norm, as published
        self.bn: nn.Module = nn.BatchNorm2d(c2)
        self.act = nn.LeakyReLU(0.1)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int) -> "ScalSeq":
        """`[c2]`; `from` lists the levels, the largest map first."""
        return cls(context.in_channels, context.scale(c2), context.act)

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of (N, Ci, Hi, Wi) -> (N, C2, H, W) of the first."""
        n, size = len(x[0]), x[0].shape[2:]
        aligned = [align(level) for align, level in zip(self.align, x, strict=True)]
        scales = torch.cat(
            [aligned[0], *(F.interpolate(y, size=size, mode="nearest") for y in aligned[1:])]
        )
        y = self.act(self.bn(self.conv(scales)))
        best = y[:n]
        for start in range(n, len(x) * n, n):
            best = torch.maximum(best, y[start : start + n])
        return best

    def fuse(self) -> nn.Module:
        """The batch norm folded into the shared convolution."""
        folded = copy.deepcopy(self)
        folded.conv, folded.bn = fold_bn(self.conv, cast(nn.BatchNorm2d, self.bn)), nn.Identity()
        return folded


class LocalAttention(nn.Module):
    """A gate for each row and one for each column of a map, from the means along the other
    (coordinate attention, Hou 2021)."""

    def __init__(self, c: int, reduction: int = 16):
        super().__init__()
        hidden = max(c // reduction, 1)
        self.squeeze = nn.Conv2d(c, hidden, 1, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU()
        self.rows = nn.Conv2d(hidden, c, 1, bias=False)
        self.columns = nn.Conv2d(hidden, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        height = x.shape[2]
        means = torch.cat(
            (x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)), 2
        )  # (N, C, H + W, 1)
        y = self.act(self.bn(self.squeeze(means)))
        return (
            x
            * self.rows(y[:, :, :height]).sigmoid()
            * self.columns(y[:, :, height:].transpose(2, 3)).sigmoid()
        )

    def fuse(self) -> nn.Module:
        """The batch norm folded into the convolution before it."""
        folded = copy.deepcopy(self)
        folded.squeeze, folded.bn = (
            fold_bn(self.squeeze, cast(nn.BatchNorm2d, self.bn)),
            nn.Identity(),
        )
        return folded


@BLOCKS.register("attention_model")
class ChannelLocalAttention(nn.Module):
    """What two paths have found, weighted by channel and by place."""

    def __init__(self, c: int):
        super().__init__()
        self.channel = ECA(c)
        self.local = LocalAttention(c)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int | None = None) -> "ChannelLocalAttention":
        """`[]`; a width, as published files write it, has no meaning.

        `from` is [detail, scale sequence], equally wide."""
        if len(context.in_channels) != 2 or len(set(context.in_channels)) != 1:
            raise ValueError(
                f"it needs two inputs of the same width, not {list(context.in_channels)}"
            )
        return cls(context.in_channels[0])

    def forward(self, x: list[Tensor]) -> Tensor:
        """Two (N, C, H, W) -> (N, C, H, W)."""
        return self.local(self.channel(x[0]) + x[1])
