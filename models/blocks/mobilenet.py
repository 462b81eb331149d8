"""MobileNetV3-Small as a backbone.

Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019, table 2.

Structure: 3x3/2 stem of 16, h-swish; inverted residuals (1x1 to the hidden width, depthwise,
squeeze-excite to a quarter of it with a hard sigmoid, 1x1), ReLU in the first ones, h-swish later;
a last 1x1 from 96 to 576.
Shapes: (N, 3, H, W) -> five maps of strides 2, 4, 8, 16, 32 with 16, 16, 24, 48, 576 channels:
outputs 0 to 4 where the row is row 0.
What differs: no classifier. Pretrained weights are timm's, by `[-1, 1, Timm,
[mobilenetv3_small_100, True]]`, which can be pruned as well.

    - [-1, 1, MobileNetV3, []]

Pruning: all channels; residuals tie the channels that blocks of a stage pass on, squeeze-excite
follows the hidden width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.registry import BLOCKS, BuildContext

SMALL = (
    (3, 16, 16, True, "ReLU", 2),
    (3, 72, 24, False, "ReLU", 2),
    (3, 88, 24, False, "ReLU", 1),
    (5, 96, 40, True, "Hardswish", 2),
    (5, 240, 40, True, "Hardswish", 1),
    (5, 240, 40, True, "Hardswish", 1),
    (5, 120, 48, True, "Hardswish", 1),
    (5, 144, 48, True, "Hardswish", 1),
    (5, 288, 96, True, "Hardswish", 2),
    (5, 576, 96, True, "Hardswish", 1),
    (5, 576, 96, True, "Hardswish", 1),
)
"""Kernel, hidden width, output width, squeeze-excite, activation, stride of each block."""


def multiple_of_8(channels: float) -> int:
    """Return the nearest multiple of 8 that is at least 8 and at least 90 % of `channels`."""
    nearest = max(int(channels + 4) // 8 * 8, 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class HardSqueezeExcite(nn.Module):
    """Channels weighed by gates from the means of the whole map (Hu 2018), with a hard sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = multiple_of_8(channels / 4)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.excite(y))


class InvertedResidual(nn.Module):
    """Narrow -> wide -> narrow; the input is added where size and width stay."""

    def __init__(self, c1: int, k: int, hidden: int, c2: int, squeeze: bool, act: str, s: int):
        super().__init__()
        layers = [Conv(c1, hidden, 1, act=act)] if hidden != c1 else []
        layers += [Conv(hidden, hidden, k, s, g=hidden, act=act)]
        squeezed = [HardSqueezeExcite(hidden)] if squeeze else []
        self.layers = nn.Sequential(*layers, *squeezed, Conv(hidden, c2, 1, act=False))
        self.add = s == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        y = self.layers(x)
        return x + y if self.add else y


@BLOCKS.register()
class MobileNetV3(nn.Module):
    """Backbone that gives a map for each stride."""

    def __init__(self, c1: int = 3):
        super().__init__()
        widths = [16, *(row[2] for row in SMALL)]
        blocks = [InvertedResidual(width, *row) for width, row in zip(widths, SMALL, strict=False)]
        last = Conv(widths[-1], 6 * widths[-1], 1, act="Hardswish")
        starts = [i for i, row in enumerate(SMALL) if row[-1] == 2]  # first block of each stride
        self.stages = nn.ModuleList([Conv(c1, 16, 3, 2, act="Hardswish")])
        for start, end in zip(starts, [*starts[1:], len(SMALL)], strict=True):
            closing = [last] if end == len(SMALL) else []
            self.stages.append(nn.Sequential(*blocks[start:end], *closing))

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "MobileNetV3":
        """Build the block; its row has no arguments."""
        return cls(context.c1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to maps of strides 2, 4, 8, 16, 32."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
