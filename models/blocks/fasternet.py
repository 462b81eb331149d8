"""FasterNet: a backbone of partial convolutions.

Paper: Chen et al., "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks", CVPR 2023,
arXiv 2303.03667.

Structure:

- `PConv`: a 3x3 convolution over the first quarter of the channels; the others pass unchanged.
- A FasterNet block: x + W2 act(BN(W1 PConv(x))), with W1 a 1x1 convolution to 2C and W2 one back to
  C, all without bias.
- `FasterNet`: 4x4 patches; stages of blocks, with 2x2 convolutions (stride 2) and batch norms
  between them; and, as the detection version of the paper has it, a batch norm on each output map.
  Strides 4, 8, 16, 32; widths C, 2C, 4C, 8C; not scaled by `width_multiple`.
- `C3_Faster`: C3 whose inner path has these blocks.

Shapes: PConv keeps (N, C, H, W); C3_Faster (N, C1, H, W) -> (N, C2, H, W); FasterNet (N, C1, H, W)
-> five maps: None, then (N, C, H/4, W/4) to (N, 8C, H/32, W/32).

What differs: no drop path (T0 of the paper has none; the larger sizes train with up to 0.3) and no
classifier.

    - [-1, 1, FasterNet, [t0]]  # outputs 0 (None), 1, 2, 3, 4
    - [-1, 1, fasternet_t0, [False]]  # the same
    - [-1, 3, C3_Faster, [128]]
    - [-1, 1, PConv, []]

Pruning: output and input of a PConv are the same channels, so the channels of a stage are pruned
together. The channels under the 3x3 convolutions and the others are two groups, and the former stay
first: `forward` reads their number from the convolution. The hidden 2C channels of each block are a
group of their own.
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
    """3x3 convolution over the first 1/n of the channels; the others pass (section 3.2)."""

    keeps_channels = True

    def __init__(self, channels: int, n: int = 4):
        super().__init__()
        first = max(channels // n, 1)
        self.conv = nn.Conv2d(first, first, 3, padding=1, bias=False)

    @classmethod
    def from_yaml(cls, context: BuildContext, n: int = 4) -> "PConv":
        """Build the block from the row arguments `[n]`."""
        return cls(context.c1, n)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        first = self.conv.in_channels
        return torch.cat((self.conv(x[:, :first]), x[:, first:]), 1)

    def channel_rule(self) -> list[InnerLayer]:
        """Tie each output channel to the same input channel.

        The first channels are those of the convolution, on both sides.
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
        """Map (N, C, H, W) to the same shape."""
        return x + self.project(self.expand(self.mix(x)))


@BLOCKS.register()
class C3_Faster(C3):  # noqa: N801 (the name that YAMLs use)
    """C3 with FasterNet blocks; its row is that of C3, but the blocks always have a residual."""

    def bottleneck(self, channels: int, shortcut: bool, g: int, act: Act) -> nn.Module:
        """Return a FasterNet block; see `C3.bottleneck`."""
        return FasterNetBlock(channels, act)


@dataclass(frozen=True)
class _Size:
    """A row of the paper's table of variants."""

    width: int
    """Channels of the first stage."""
    depths: tuple[int, ...]
    """Number of blocks of each stage."""
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
    """Backbone of four stages that gives the map of each (section 3.4)."""

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
        """Build the block from the row arguments `[size, act]`.

        Without `act` the activation is the one of the size.
        """
        chosen: _Size = size_of(SIZES, size, "FasterNet")
        act = chosen.act if act is None else act
        return cls(context.c1, chosen.width, chosen.depths, act)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        """Map (N, C1, H, W) to five maps: None, then (N, C, H/4, W/4) to (N, 8C, H/32, W/32)."""
        maps = []
        for down, stage, norm in zip(self.down, self.stages, self.norms, strict=True):
            x = stage(down(x))
            maps.append(norm(x))
        return five_maps(maps)


register_sizes(FasterNet, {f"fasternet_{size}": size for size in SIZES})
