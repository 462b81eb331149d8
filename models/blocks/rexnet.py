"""ReXNet: an inverted-residual backbone whose width grows by the same step in every block.

Paper: Han et al., "Rethinking Channel Dimensions for Efficient Model Design", CVPR 2021.

Structure: 3x3/2 stem of 32, SiLU; 16 blocks in stages of 1, 2, 2, 3, 3, 5 at strides 2, 4, 8, 16,
16, 32, whose widths are 16 + 11.25 i, rounded. A block: 1x1 to 6 c1, SiLU (none in the first
block); depthwise 3x3; from the third stage on squeeze-excite to a twelfth of the hidden width;
ReLU6; 1x1 to c2. At stride 1 the input is added to the first c1 of the c2 channels.
Shapes: (N, 3, H, W) -> five maps of strides 2, 4, 8, 16, 32 with 16, 38, 61, 128, 185 channels:
outputs 0 to 4 where the row is row 0.
What differs: the squeeze convolution has no bias, because the shift of its batch norm is one (a
bias less for each hidden squeeze channel).

    - [-1, 1, ReXNet, [1.0]]        # width
    - [-1, 1, rexnet_100, [False]]  # the same, no pretrained weights

Pruning: hidden widths and squeeze widths are pruned. The channels that blocks pass on to each other
stay whole: of c2 channels the first c1 are tied to the block before and the others are not, all
along a stage.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.backbone import register_sizes
from models.blocks.conv import Conv
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext
from utils.errors import UserError

STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (5, 2))
"""Number of blocks of each stage, and the stride of its first block."""
MAPS = (0, 2, 4, 10, 15)
"""Indices of the blocks whose outputs are the last of their stride."""
# width factor by the number in the published name
SIZES = {"100": 1.0, "130": 1.3, "150": 1.5, "200": 2.0, "300": 3.0}


class SqueezeExcite(nn.Module):
    """Channels weighed by gates from the means of the whole map (Hu 2018), a batch norm inside."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.squeeze = Conv(channels, hidden, 1, act="ReLU")
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()


class ReXBlock(nn.Module):
    """Inverted residual with linear bottleneck; the residual covers the first c1 channels."""

    no_prune = {"project": "a residual ties only a part of its channels, another one in each block"}

    def __init__(self, c1: int, c2: int, s: int, expansion: int, squeeze: bool):
        super().__init__()
        hidden = c1 * expansion
        self.expand = Conv(c1, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, 3, s, g=hidden, act=False)
        self.excite = SqueezeExcite(hidden, hidden // 12) if squeeze else nn.Identity()
        self.act = nn.ReLU6()
        self.project = Conv(hidden, c2, 1, act=False)
        self.add = s == 1 and c1 <= c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        y = self.project(self.act(self.excite(self.depthwise(self.expand(x)))))
        if not self.add:
            return y
        new_channels = y.shape[1] - x.shape[1]
        return y + detach_channels(F.pad(x, (0, 0, 0, 0, 0, new_channels)))


@BLOCKS.register()
class ReXNet(nn.Module):
    """Backbone that gives a map for each stride."""

    def __init__(self, c1: int = 3, width: float = 1.0):
        super().__init__()
        blocks = sum(n for n, _ in STAGES)
        base = 1 / min(width, 1.0)  # keeps the first widths from falling below those of size 1
        growth = 180 / blocks  # channels that each block adds
        stem = round(32 * base * width)
        channels = [stem, *(round((16 * base + growth * i) * width) for i in range(blocks))]
        strides = [s if i == 0 else 1 for n, s in STAGES for i in range(n)]
        first_squeezed = sum(n for n, _ in STAGES[:2])  # the first block of the third stage
        self.stem = Conv(c1, channels[0], 3, 2)
        self.blocks = nn.ModuleList(
            ReXBlock(
                channels[i],
                channels[i + 1],
                strides[i],
                6 if i else 1,
                squeeze=i >= first_squeezed,
            )
            for i in range(blocks)
        )

    @classmethod
    def from_yaml(cls, context: BuildContext, width: float | str = 1.0) -> "ReXNet":
        """Build the block from the row arguments `[width]`."""
        factor = SIZES.get(width) if isinstance(width, str) else width
        if factor is None or not 0 < factor <= 8:
            raise UserError(
                f"ReXNet has no width {width!r}; expected a number as 1.0, 1.3, 1.5, 2.0, 3.0"
            )
        return cls(context.c1, factor)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to maps of strides 2, 4, 8, 16, 32."""
        x = self.stem(x)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in MAPS:
                maps.append(x)
        return maps


register_sizes(ReXNet, {f"rexnet_{size}": size for size in SIZES})
