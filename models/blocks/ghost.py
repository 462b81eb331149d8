"""GhostNet: half of the channels are computed, the other half are cheap depthwise copies of them.

Paper: Han et al., "GhostNet", CVPR 2020.

    GhostConv   x -> y = conv(x) with c2 / 2 channels -> y beside depthwise5x5(y):
                (N, C1, H, W) -> (N, C2, H/s, W/s)
    C3Ghost     C3 whose inner steps are two ghost convolutions with a residual:
                (N, C1, H, W) -> (N, C2, H, W)

    - [-1, 1, GhostConv, [128, 3, 2]]
    - [-1, 3, C3Ghost, [128]]

What differs: the cheap operation is 5x5 and the bottleneck has stride 1 only, as in YOLOv5.

Pruning: a channel is pruned with its copy. The stream through C3Ghost's residuals stays whole: a
residual would tie every channel to the one half a width away, and both are the same channel of the
convolution that computes them. All other channels of C3Ghost are pruned.
"""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.blocks.csp import C3
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from these by a cheap depthwise 5x5."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: Act = "SiLU"):
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, k, s, g=g, act=act)
        self.cv2 = Conv(hidden, hidden, 5, g=hidden, act=act)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        k: int = 1,
        s: int = 1,
        g: int = 1,
        act: Act | None = None,
    ) -> "GhostConv":
        """Build the block from the row arguments `[c2, k, s, g, act]`."""
        return cls(context.c1, context.scale(c2), k, s, g, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        x = self.cv1(x)
        return torch.cat((x, self.cv2(x)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions with a residual, stride 1."""

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        hidden = channels // 2
        # the Identity keeps the official parameter names: the stride-2 form has a convolution here
        self.conv = nn.Sequential(
            GhostConv(channels, hidden, act=act),
            nn.Identity(),
            GhostConv(hidden, channels, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.conv(x) + x


@BLOCKS.register()
class C3Ghost(C3):
    """C3 with ghost bottlenecks."""

    def bottleneck(self, channels: int, shortcut: bool, g: int, act: Act) -> nn.Module:
        """Return a ghost bottleneck; see `C3.bottleneck`."""
        return GhostBottleneck(channels, act)
