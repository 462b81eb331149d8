"""AFPN: levels that are fused step by step, the neighbours first, each cell by weights of its own
(ASFF).

Papers: Yang et al., "AFPN: Asymptotic Feature Pyramid Network", 2023; Liu et al., "Learning Spatial
Fusion", 2019 (ASFF).

Structure: every level is squeezed to C / factor (1x1) and passed through a 1x1. FusionStage 2 fuses
the two finest levels, stage 3 adds the third ...: each level of a stage gets the others resampled
to its size (down by 2^k: a convolution of kernel and stride 2^k; up: 1x1 and bilinear), an ASFF and
n residual blocks of two 3x3. A 1x1 brings every level to c2.
ASFF: each input -> 1x1 to 8; joined -> 1x1 to one logit an input; softmax; weighted sum; 3x3.
Shapes: [(N, Ci, H/2^i, W/2^i), ...] -> as many (N, C2, H/2^i, W/2^i): a row with several outputs.
What differs: nothing known.

    - [[14, 21, 37], 1, AFPN, [128, 4, 4]]   # c2, factor, n; takes as many indices as it has inputs
    - [[14, 20], 1, ASFF, []]                # maps of one shape, one comes out

Pruning: the weights of a cell tie no channels; the convolution that gives the logits stays whole;
sums tie what makes a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act, BuildContext, activation


@BLOCKS.register()
class ASFF(nn.Module):
    """Sum of maps of one shape, each cell with weights of its own that add up to 1 (Liu 2019,
    equations 1 and 2)."""

    no_prune = {"weigh": "one weight for each level"}

    def __init__(self, channels: int, n: int, hidden: int = 8, act: Act = "SiLU"):
        super().__init__()
        self.squeeze = nn.ModuleList(Conv(channels, hidden, 1, act=act) for _ in range(n))
        self.weigh = nn.Conv2d(n * hidden, n, 1)
        self.conv = Conv(channels, channels, 3, act=act)

    @classmethod
    def from_yaml(cls, context: BuildContext, hidden: int = 8) -> "ASFF":
        """`[hidden]`; the inputs have one shape."""
        return cls(context.in_channels[0], len(context.in_channels), hidden, context.act)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """n maps (N, C, H, W) -> (N, C, H, W)."""
        logits = self.weigh(
            torch.cat([squeeze(x) for squeeze, x in zip(self.squeeze, maps, strict=True)], 1)
        )
        shares = detach_channels(logits.softmax(1))
        total = maps[0] * shares[:, :1]
        for i, x in enumerate(maps[1:], 1):
            total = total + x * shares[:, i : i + 1]
        return self.conv(total)


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added, then the activation
    (ResNet, He 2015).
    """

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = Conv(channels, channels, 3, act=act)
        self.cv2 = Conv(channels, channels, 3, act=False)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return self.act(x + self.cv2(self.cv1(x)))


def resample(c1: int, c2: int, levels: int, act: Act) -> nn.Module:
    """To a map that is `levels` coarser (finer where negative), with c2 channels; nothing to do for
    0."""
    if levels == 0:
        return nn.Identity()
    factor = 2 ** abs(levels)
    if levels > 0:
        return Conv(c1, c2, factor, factor, 0, act=act)
    return nn.Sequential(
        Conv(c1, c2, 1, act=act), nn.Upsample(scale_factor=factor, mode="bilinear")
    )


class FusionStage(nn.Module):
    """Every level fused with all others of the stage."""

    def __init__(self, channels: Sequence[int], n: int, act: Act):
        super().__init__()
        levels = range(len(channels))
        self.resample = nn.ModuleList(
            nn.ModuleList(
                resample(channels[source], channels[target], target - source, act)
                for source in levels
            )
            for target in levels
        )
        self.fuse_levels = nn.ModuleList(ASFF(c, len(channels), act=act) for c in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(c, act) for _ in range(n))) for c in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map a level -> the same shapes."""
        fused = []
        for steps, fuse, blocks in zip(self.resample, self.fuse_levels, self.blocks, strict=True):
            assert isinstance(steps, nn.ModuleList)
            fused.append(blocks(fuse([step(x) for step, x in zip(steps, maps, strict=True)])))
        return fused


@BLOCKS.register()
class AFPN(nn.Module):
    """Asymptotic feature pyramid; the finest level comes first."""

    def __init__(
        self, channels: Sequence[int], c2: int, factor: int = 4, n: int = 4, act: Act = "SiLU"
    ):
        super().__init__()
        inner = [max(c // factor, 8) for c in channels]
        self.reduce = nn.ModuleList(
            nn.Sequential(Conv(c, i, 1, act=act), Conv(i, i, 1, act=act))
            for c, i in zip(channels, inner, strict=True)
        )
        self.stages = nn.ModuleList(
            FusionStage(inner[:levels], n, act) for levels in range(2, len(inner) + 1)
        )
        self.out = nn.ModuleList(Conv(i, c2, 1, act=act) for i in inner)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int, factor: int = 4, n: int = 4) -> "AFPN":
        """`[c2, factor, n]`; the inputs are levels from fine to coarse, each of half the size."""
        steps = [
            fine * 2 == coarse
            for fine, coarse in zip(context.in_strides, context.in_strides[1:], strict=False)
        ]
        if not steps or not all(steps):
            raise ValueError(
                "AFPN takes at least two levels from fine to coarse, each of half the size;"
                f" strides {context.in_strides}"
            )
        return cls(context.in_channels, context.scale(c2), factor, n, context.act)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """[(N, Ci, Hi, Wi)] -> [(N, C2, Hi, Wi)]."""
        maps = [reduce(level) for reduce, level in zip(self.reduce, x, strict=True)]
        for levels, stage in enumerate(self.stages, 2):
            maps[:levels] = stage(maps[:levels])
        return [out(level) for out, level in zip(self.out, maps, strict=True)]
