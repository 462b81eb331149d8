"""AFPN: fuse levels step by step, neighbours first, with weights for each cell (ASFF).

Papers: Yang et al., "AFPN: Asymptotic Feature Pyramid Network", 2023; Liu et al., "Learning Spatial
Fusion", 2019 (ASFF).

Structure of AFPN: every level is reduced to C / factor channels (1x1) and passed through a 1x1.
FusionStage 2 fuses the two finest levels, stage 3 adds the third, and so on. In a stage each level
gets the others resampled to its size, an ASFF, and n residual blocks of two 3x3. Resampling down by
2^k is a convolution of kernel and stride 2^k; up, a 1x1 and bilinear interpolation. A last 1x1
brings every level to c2.
Structure of ASFF: a 1x1 brings each input to 8 channels; these are joined, and a 1x1 gives one
logit for each input; softmax, weighted sum, 3x3.
Shapes: [(N, Ci, H/2^i, W/2^i), ...] -> as many (N, C2, H/2^i, W/2^i): a row with several outputs.
What differs: nothing known.

    - [[14, 21, 37], 1, AFPN, [128, 4, 4]]   # c2, factor, n; one output index for each input
    - [[14, 20], 1, ASFF, []]                # inputs of one shape, a single output

Pruning: the weights of the cells tie no channels; the convolution that gives the logits stays
whole; sums tie the channels of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act, BuildContext, activation


@BLOCKS.register()
class ASFF(nn.Module):
    """Weighted sum of maps of one shape (Liu 2019, equations 1 and 2).

    Each cell has weights of its own, which add up to 1 over the maps.
    """

    no_prune = {"weigh": "one weight for each level"}

    def __init__(self, channels: int, n: int, hidden: int = 8, act: Act = "SiLU"):
        super().__init__()
        self.squeeze = nn.ModuleList(Conv(channels, hidden, 1, act=act) for _ in range(n))
        self.weigh = nn.Conv2d(n * hidden, n, 1)
        self.conv = Conv(channels, channels, 3, act=act)

    @classmethod
    def from_yaml(cls, context: BuildContext, hidden: int = 8) -> "ASFF":
        """Build the block from the row arguments `[hidden]`; all inputs have one shape."""
        return cls(context.in_channels[0], len(context.in_channels), hidden, context.act)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map n maps (N, C, H, W) to one (N, C, H, W)."""
        squeezed = [squeeze(x) for squeeze, x in zip(self.squeeze, maps, strict=True)]
        logits = self.weigh(torch.cat(squeezed, 1))
        shares = detach_channels(logits.softmax(1))
        total = maps[0] * shares[:, :1]
        for i, x in enumerate(maps[1:], 1):
            total = total + x * shares[:, i : i + 1]
        return self.conv(total)


class Residual(nn.Module):
    """Two 3x3 convolutions, the input added, then the activation (ResNet, He 2015)."""

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        self.cv1 = Conv(channels, channels, 3, act=act)
        self.cv2 = Conv(channels, channels, 3, act=False)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.act(x + self.cv2(self.cv1(x)))


def resample(c1: int, c2: int, levels: int, act: Act) -> nn.Module:
    """Return a module that resamples a map by 2^levels and gives c2 channels.

    Args:
        c1: Channels of the input.
        c2: Channels of the output.
        levels: Number of levels by which the output is coarser; finer where negative. For 0 the
            module is an identity.
        act: Activation of the convolutions.
    """
    if levels == 0:
        return nn.Identity()
    factor = 2 ** abs(levels)
    if levels > 0:
        return Conv(c1, c2, factor, factor, 0, act=act)
    return nn.Sequential(
        Conv(c1, c2, 1, act=act), nn.Upsample(scale_factor=factor, mode="bilinear")
    )


class FusionStage(nn.Module):
    """Fusion of every level with all others of the stage."""

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
        """Map the maps of all levels to maps of the same shapes."""
        fused = []
        for steps, fuse, blocks in zip(self.resample, self.fuse_levels, self.blocks, strict=True):
            assert isinstance(steps, nn.ModuleList)
            resampled = [step(x) for step, x in zip(steps, maps, strict=True)]
            fused.append(blocks(fuse(resampled)))
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
        """Build the block from the row arguments `[c2, factor, n]`.

        The inputs are levels from fine to coarse, each of half the size of the one before.
        """
        strides = context.in_strides
        halved = [fine * 2 == coarse for fine, coarse in zip(strides, strides[1:], strict=False)]
        if not halved or not all(halved):
            raise ValueError(
                "AFPN takes at least two levels from fine to coarse, each of half the size;"
                f" strides {context.in_strides}"
            )
        return cls(context.in_channels, context.scale(c2), factor, n, context.act)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Map [(N, Ci, Hi, Wi)] to [(N, C2, Hi, Wi)]."""
        maps = [reduce(level) for reduce, level in zip(self.reduce, x, strict=True)]
        for levels, stage in enumerate(self.stages, 2):
            maps[:levels] = stage(maps[:levels])
        return [out(level) for out, level in zip(self.out, maps, strict=True)]
