"""Cross-stage-partial blocks: one path through bottlenecks, one path around them.

Papers: He et al., "Deep Residual Learning for Image Recognition", 2015 (bottleneck); Wang et al.,
"CSPNet", 2020.

Structure of Bottleneck: a 1x1 to e c2 and a 3x3 to c2, with a residual where asked for and the
widths agree.
Structure of C3: two 1x1 to e c2; one path goes on through n bottlenecks (e = 1); joined, 1x1.
Structure of BottleneckCSPA: that of C3.
Structure of BottleneckCSPC: that of C3, with a 1x1 at the end of the path through the bottlenecks.
Structure of BottleneckCSPB: one 1x1 to c2 before both paths; the other path is a 1x1
(Scaled-YOLOv4, Wang 2021; the baselines of YOLOv7's repository).
Structure of BottleneckCSP: each path ends with a 1x1 without a batch norm of its own; batch norm
and activation follow after both are joined; then 1x1.
Shapes: (N, C1, H, W) -> (N, C2, H, W).
What differs: CSPNet divides the channels between the paths; here, as in YOLOv5, each path starts
with a 1x1 over all channels.

    - [-1, 1, Bottleneck, [128]]     # c2, shortcut, g, e
    - [-1, 3, C3, [128, False]]      # the same; the repeats are n
    - [-1, 3, BottleneckCSP, [128]]  # the same
    - [-1, 3, BottleneckCSPA, [128]]        # the same
    - [-1, 3, BottleneckCSPB, [128, True]]  # the same; no shortcut by default, e has no effect
    - [-1, 3, BottleneckCSPC, [128]]        # the same

Pruning: all channels. A residual ties the channels that it adds: with `shortcut` the first 1x1 and
the ends of all steps are one group.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.registry import BLOCKS, Act, BuildContext, activation


@BLOCKS.register()
class Bottleneck(nn.Module):
    """1x1, then 3x3 convolution (ResNet, He 2015).

    A residual is added where asked for and the widths agree.
    """

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5, act: Act = "SiLU"
    ):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(hidden, c2, 3, g=g, act=act)
        self.add = shortcut and c1 == c2

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> "Bottleneck":
        """Build the block from the row arguments `[c2, shortcut, g, e]`."""
        return cls(context.c1, context.scale(c2), shortcut, g, e, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class _Repeated:
    """Base of the blocks whose repeats are a number of steps inside the block."""

    repeats_inside = True

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5
    ):
        """Build the block from `[c2, shortcut, g, e]`; the repeats count the bottlenecks."""
        return cls(context.c1, context.scale(c2), context.repeats, shortcut, g, e, context.act)  # type: ignore[call-arg]


@BLOCKS.register()
class C3(_Repeated, nn.Module):
    """CSP bottleneck with three convolutions (CSPNet, Wang 2020, as YOLOv5 uses it)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        act: Act = "SiLU",
    ):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(c1, hidden, 1, act=act)
        self.cv3 = Conv(2 * hidden, c2, 1, act=act)
        self.m = nn.Sequential(*(self.bottleneck(hidden, shortcut, g, act) for _ in range(n)))

    def bottleneck(self, channels: int, shortcut: bool, g: int, act: Act) -> nn.Module:
        """Return one step of the inner path; subclasses override this method."""
        return Bottleneck(channels, channels, shortcut, g, 1.0, act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@BLOCKS.register()
class BottleneckCSP(_Repeated, nn.Module):
    """CSP bottleneck with four convolutions, and a batch norm over both paths.

    Paper: CSPNet, Wang 2020.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        act: Act = "SiLU",
    ):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = nn.Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, act=act)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = activation(act)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, hidden, shortcut, g, 1.0, act) for _ in range(n))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        through = self.cv3(self.m(self.cv1(x)))
        paths = torch.cat((through, self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(paths)))


@BLOCKS.register()
class BottleneckCSPA(C3):
    """CSP bottleneck with three convolutions, as YOLOv7's baselines name it."""


@BLOCKS.register()
class BottleneckCSPC(C3):
    """CSP bottleneck with four convolutions: a 1x1 ends the path through the bottlenecks."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        act: Act = "SiLU",
    ):
        super().__init__(c1, c2, n, shortcut, g, e, act)
        hidden = int(c2 * e)
        self.cv3 = Conv(hidden, hidden, 1, act=act)
        self.cv4 = Conv(2 * hidden, c2, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        return self.cv4(torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1))


@BLOCKS.register()
class BottleneckCSPB(nn.Module):
    """CSP bottleneck of the neck: one 1x1 before both paths, which have the width of the block."""

    repeats_inside = True

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, act: Act = "SiLU"
    ):
        super().__init__()
        self.cv1 = Conv(c1, c2, 1, act=act)
        self.cv2 = Conv(c2, c2, 1, act=act)
        self.cv3 = Conv(2 * c2, c2, 1, act=act)
        self.m = nn.Sequential(*(Bottleneck(c2, c2, shortcut, g, 1.0, act) for _ in range(n)))

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, shortcut: bool = False, g: int = 1, e: float = 0.5
    ) -> "BottleneckCSPB":
        """Build the block from `[c2, shortcut, g, e]`; e stands in the signature without effect."""
        width = context.scale(c2)
        return cls(context.c1, width, context.repeats, shortcut, g, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        x = self.cv1(x)
        return self.cv3(torch.cat((self.m(x), self.cv2(x)), 1))
