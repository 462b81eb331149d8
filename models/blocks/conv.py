"""Convolution + batch norm + activation, the brick everything is built of, and its relatives.

    Conv     convolution without bias, batch norm (Ioffe 2015), activation: (N, C1, H, W) -> (N, C2,
      H/s, W/s)
    DWConv   Conv with as many groups as divide both widths (MobileNet, Howard 2017): the same
      shapes
    Focus    2x2 cells to channels, then Conv (YOLOv5 before v6): (N, C1, H, W) -> (N, C2, H/2, W/2)
      where s is 1
    ReOrg    2x2 cells to channels (YOLOv7, Wang 2022): (N, C, H, W) -> (N, 4C, H/2, W/2)

    - [-1, 1, Conv, [64, 3, 2]]   # c2, k, s, p, g, d, act
    - [-1, 1, DWConv, [64, 3]]    # c2, k, s, d, act
    - [-1, 1, Focus, [64, 3]]     # c2, k, s, p, g, act
    - [-1, 1, ReOrg, []]

What differs: nothing known; names and order of the weights are those of official files.

Pruning: outputs go with their batch norm. A depthwise convolution follows its input; one with fewer
groups (g > 1, or a DWConv between two widths) stays whole on both sides. An input channel of Focus
and ReOrg goes with the four that it becomes.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.registry import BLOCKS, Act, BuildContext, activation


def autopad(k: int | Sequence[int], p: int | None = None, d: int = 1) -> int | tuple[int, int]:
    """The given padding, or the one that keeps the size at stride 1 ("same")."""
    if p is not None:
        return p
    height, width = (k, k) if isinstance(k, int) else k
    return d * (height - 1) // 2, d * (width - 1) // 2


class DeployedConv(nn.Module):
    """Convolution with bias + activation: what `Conv` and `RepConv` become by `fuse()`."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H/s, W/s)."""
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
        """`[c2, k, s, p, g, d, act]` as YOLOv5 v7.0 writes it, or `[c2, k, s, p, g, act]` as YOLOv7
        does: told apart by type."""
        if type(d) is not int:
            d, act = 1, d
        return cls(context.c1, context.scale(c2), k, s, p, g, d, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> nn.Module:
        """The batch norm folded into the convolution."""
        return DeployedConv(fold_bn(self.conv, self.bn), self.act)


def scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode is gain * x + shift; both (C,)."""
    mean, var = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
    gain = bn.weight.detach() / torch.sqrt(var + bn.eps)
    return gain, bn.bias.detach() - mean * gain


def fold_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """A new convolution with bias that equals `bn(conv(x))` in eval mode."""
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
        """`[c2, k, s, d, act]` (YOLOv5 v7.0) or `[c2, k, s, act]` (YOLOv7)."""
        if type(d) is not int:
            d, act = 1, d
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
        """`[c2, k, s, p, g, act]`."""
        return cls(context.c1, context.scale(c2), k, s, p, g, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H/2, W/2)."""
        return self.conv(space_to_depth(x))


@BLOCKS.register()
class ReOrg(nn.Module):
    """2x2 neighbourhoods to channels: (N, C, H, W) -> (N, 4C, H/2, W/2)."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "ReOrg":
        """`[]`."""
        return cls()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return space_to_depth(x)


def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 4C, H/2, W/2), in the order the official weights expect: rows vary
    fastest, (0,0) (1,0) (0,1) (1,1)."""
    return torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)
