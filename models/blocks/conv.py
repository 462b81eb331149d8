"""Convolution + batch norm + activation, the building block of all others, and its relatives.

    Conv     convolution without bias, batch norm (Ioffe 2015), activation:
             (N, C1, H, W) -> (N, C2, H/s, W/s)
    DWConv   Conv with as many groups as divide both widths (MobileNet, Howard 2017): the same
             shapes
    Focus    2x2 cells to channels, then Conv (YOLOv5 before v6):
             (N, C1, H, W) -> (N, C2, H/2, W/2) where s is 1
    ReOrg    2x2 cells to channels (YOLOv7, Wang 2022): (N, C, H, W) -> (N, 4C, H/2, W/2)

    - [-1, 1, Conv, [64, 3, 2]]   # c2, k, s, p, g, d, act
    - [-1, 1, DWConv, [64, 3]]    # c2, k, s, d, act
    - [-1, 1, Focus, [64, 3]]     # c2, k, s, p, g, act
    - [-1, 1, ReOrg, []]

What differs: nothing known; names and order of the weights are those of official files.

Pruning: outputs are pruned together with their batch norm. A depthwise convolution follows its
input; a convolution with fewer groups (g > 1, or a DWConv between two widths) stays whole on both
sides. An input channel of Focus and ReOrg is pruned with the four that it becomes.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.registry import BLOCKS, Act, BuildContext, activation


def autopad(k: int | Sequence[int], p: int | None = None, d: int = 1) -> int | tuple[int, int]:
    """Return the given padding, or else the one that keeps the size at stride 1 ("same").

    Args:
        k: Kernel size, one for both sides or (height, width).
        p: Padding of the row, or None.
        d: Dilation.
    """
    if p is not None:
        return p
    height, width = (k, k) if isinstance(k, int) else k
    return d * (height - 1) // 2, d * (width - 1) // 2


class DeployedConv(nn.Module):
    """Convolution with bias + activation: the form of `Conv` and `RepConv` after `fuse()`."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        return self.act(self.conv(x))


@BLOCKS.register()
class Conv(nn.Module):
    """Convolution without bias, batch norm, activation."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Any = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        act: Act = "SiLU",
    ):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p, d), groups=g, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = activation(act)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        k: Any = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: Any = 1,
        act: Act | None = None,
    ) -> "Conv":
        """Build the block from the row arguments of YOLOv5 or YOLOv7.

        YOLOv5 v7.0 writes `[c2, k, s, p, g, d, act]`, YOLOv7 `[c2, k, s, p, g, act]`. The two are
        told apart by the type of the sixth argument: an int is a dilation.
        """
        if type(d) is not int:
            d, act = 1, d  # YOLOv7 has the activation in this place
        return cls(context.c1, context.scale(c2), k, s, p, g, d, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> nn.Module:
        """Return the deployed form, with the batch norm folded into the convolution."""
        return DeployedConv(fold_bn(self.conv, self.bn), self.act)


def scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return gain and shift, both (C,), of a batch norm in eval mode: gain * x + shift."""
    mean, var = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
    gain = bn.weight.detach() / torch.sqrt(var + bn.eps)
    return gain, bn.bias.detach() - mean * gain


def fold_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a new convolution with bias that equals `bn(conv(x))` in eval mode."""
    gain, shift = scale_and_shift(bn)
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight.detach() * gain.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter(shift if conv.bias is None else shift + gain * conv.bias.detach())
    return folded


@BLOCKS.register()
class DWConv(Conv):
    """Depthwise convolution: as many groups as both widths allow."""

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        k: Any = 1,
        s: int = 1,
        d: Any = 1,
        act: Act | None = None,
    ) -> "DWConv":
        """Build the block from `[c2, k, s, d, act]` (YOLOv5 v7.0) or `[c2, k, s, act]` (YOLOv7)."""
        if type(d) is not int:
            d, act = 1, d  # YOLOv7 has the activation in this place
        c1, c2 = context.c1, context.scale(c2)
        return cls(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=context.pick_act(act))


@BLOCKS.register()
class Focus(nn.Module):
    """2x2 neighbourhoods to channels, then a convolution (YOLOv5 before v6)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: Act = "SiLU",
    ):
        super().__init__()
        self.conv = Conv(4 * c1, c2, k, s, p, g, act=act)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        k: int = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: Act | None = None,
    ) -> "Focus":
        """Build the block from the row arguments `[c2, k, s, p, g, act]`."""
        return cls(context.c1, context.scale(c2), k, s, p, g, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/2, W/2)."""
        return self.conv(space_to_depth(x))


@BLOCKS.register()
class ReOrg(nn.Module):
    """2x2 neighbourhoods to channels: (N, C, H, W) -> (N, 4C, H/2, W/2)."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "ReOrg":
        """Build the block; its row has no arguments."""
        return cls()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 4C, H/2, W/2)."""
        return space_to_depth(x)


def space_to_depth(x: Tensor) -> Tensor:
    """Map (N, C, H, W) to (N, 4C, H/2, W/2), each 2x2 neighbourhood to channels.

    The order is the one that official weights expect: rows vary fastest, as (0,0) (1,0) (0,1)
    (1,1).
    """
    return torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)
