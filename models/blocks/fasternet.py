"""FasterNet (Chen et al., Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks, CVPR
2023, arXiv 2303.03667).

- `PConv`: a 3x3 convolution over the first quarter of the channels; the others pass. (N, C, H, W)
  -> the same shape.
- A FasterNet block: x + W2 act(BN(W1 PConv(x))), W1 a 1x1 convolution to 2C, W2 one back to C, all
  without bias.
- `FasterNet`: 4x4 patches, stages of blocks with 2x2 convolutions (stride 2) and batch norms
  between them, and, as its detection version has it, a batch norm on each map that it gives.
  Strides 4, 8, 16, 32; widths C, 2C, 4C, 8C; not scaled by `width_multiple`.
- `C3_Faster`: C3 whose inner path has these blocks.

What differs: there is no drop path (its T0 has none; the larger ones train with up to 0.3) and no
classifier.

    - [-1, 1, FasterNet, [t0]]  # outputs 0 (None), 1, 2, 3, 4
    - [-1, 1, fasternet_t0, [False]]  # the same
    - [-1, 3, C3_Faster, [128]]
    - [-1, 1, PConv, []]

Pruning: what comes out of a PConv is what went in, so the channels of a stage are cut together.
Those under the 3x3 convolutions and the others are two groups, and the first ones stay first: the
number is read from the convolution. The hidden 2C of each block is a group of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks.backbone import five_maps, register_sizes, size_of
from models.blocks.conv import Conv
from models.blocks.csp import C3
from models.pruning_rules import InnerLayer
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class PConv(nn.Module):
    """3x3 convolution over the first 1/n of the channels, the others pass (section 3.2)."""

    def __init__(self, channels: int, n: int = 4):
        super().__init__()
        first = max(channels // n, 1)
        self.conv = nn.Conv2d(first, first, 3, padding=1, bias=False)

    @classmethod
    def from_yaml(cls, context: BuildContext, n: int = 4) -> "PConv":
        """`[n]`."""
        return cls(context.c1, n)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        first = self.conv.in_channels
        return torch.cat((self.conv(x[:, :first]), x[:, first:]), 1)

    def channel_rule(self) -> list[InnerLayer]:
        """One comes out for each that goes in; the first ones are the convolution's on
        both sides.
        """
        first = range(self.conv.in_channels)
        return [InnerLayer("conv", "in", first, first), InnerLayer("conv", "out", first, first)]


class FasterNetBlock(nn.Module):
    """PConv, 1x1 to twice the width, 1x1 back, residual (section 3.3)."""

    def __init__(self, channels: int, act: Act = "SiLU"):
        super().__init__()
        self.mix = PConv(channels)
        self.expand = Conv(channels, 2 * channels, act=act)
        self.project = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x + self.project(self.expand(self.mix(x)))


@BLOCKS.register()
class C3_Faster(C3):  # noqa: N801 (the name that YAMLs use)
    """C3 with FasterNet blocks; YAML as C3's (they always have their residual)."""

    def bottleneck(self, channels: int, shortcut: bool, g: int, act: Act) -> nn.Module:
        """See C3."""
        return FasterNetBlock(channels, act)


@dataclass(frozen=True)
class _Size:
    """A row of the paper's table of variants: width of the first stage, blocks a
    stage, activation.
    """

    width: int
    depths: tuple[int, ...]
    act: str


SIZES = {
    "t0": _Size(40, (1, 2, 8, 2), "GELU"),
    "t1": _Size(64, (1, 2, 8, 2), "GELU"),
    "t2": _Size(96, (1, 2, 8, 2), "ReLU"),
    "s": _Size(128, (1, 2, 13, 2), "ReLU"),
    "m": _Size(144, (3, 4, 18, 3), "ReLU"),
    "l": _Size(192, (3, 4, 18, 3), "ReLU"),
}


@BLOCKS.register()
class FasterNet(nn.Module):
    """The backbone: four stages, a map of each (section 3.4)."""

    def __init__(self, c1: int, width: int, depths: tuple[int, ...], act: Act = "GELU"):
        super().__init__()
        widths = [width * 2**i for i in range(len(depths))]
        self.down = nn.ModuleList([Conv(c1, width, 4, 4, 0, act=False)])
        self.down.extend(
            Conv(before, after, 2, 2, 0, act=False)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(FasterNetBlock(c, act) for _ in range(depth)))
            for c, depth in zip(widths, depths, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in widths)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, size: str = "t0", act: Act | None = None
    ) -> "FasterNet":
        """`[size, act]`; the activation is the size's own where none is given."""
        chosen: _Size = size_of(SIZES, size, "FasterNet")
        return cls(context.c1, chosen.width, chosen.depths, chosen.act if act is None else act)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        """(N, C1, H, W) -> five maps: None, then (N, C, H/4, W/4) to (N, 8C, H/32, W/32)."""
        maps = []
        for down, stage, norm in zip(self.down, self.stages, self.norms, strict=True):
            x = stage(down(x))
            maps.append(norm(x))
        return five_maps(maps)


register_sizes(FasterNet, {f"fasternet_{size}": size for size in SIZES})
