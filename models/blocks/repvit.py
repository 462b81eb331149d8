"""RepViT: a backbone of re-parameterised depthwise convolutions.

Paper: Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024, arXiv
2307.09283; its first release.

Structure:

- Stem: two 3x3 convolutions of stride 2, GELU between them.
- Block: a token mixer (depthwise 3x3 + depthwise 1x1 + identity, each convolution with a BN of its
  own; squeeze-and-excite on every other block), then a channel mixer x + W2 GELU(W1 x) with 1x1
  convolutions and BN, hidden width 2C.
- Between stages: depthwise 3x3 of stride 2, 1x1 to the next width, a channel mixer.

In deployment the branches of a token mixer are one depthwise 3x3 convolution.

Shapes: maps of strides 4, 8, 16, 32: (N, C, H/4, W/4) to (N, 8C, H/32, W/32); not scaled by
`width_multiple`. The map of a stage is the input of the next down-sampling (timm takes the map one
block earlier: same widths and parameters).

What differs: only the sizes of the first release exist, m1 to m3; later ones (m0_9 ...) have the
batch norm of the token mixer behind the sum and are equal to these once deployed. No classifier, no
distillation token.

    - [-1, 1, RepViT, [m1]]  # outputs 0 (None), 1, 2, 3, 4
    - [-1, 1, repvit_m1, [False]]  # the same

Pruning: the channels of a stage are one group (identity, depthwise branches and gates tie them);
the hidden widths of the channel mixers and of the squeeze-and-excite are groups of their own.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.backbone import five_maps, register_sizes, size_of
from models.blocks.conv import Conv, fold_bn
from models.registry import BLOCKS, Act, BuildContext

SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "m1": (48, (2, 2, 14, 2)),
    "m2": (64, (2, 2, 12, 2)),
    "m3": (64, (4, 4, 18, 2)),
}
"""Width of the first stage, and number of blocks of each stage.

The block before each down-sampling is not counted.
"""


class RepDepthwise(nn.Module):
    """Depthwise 3x3 + depthwise 1x1 + identity."""

    deploy_free = ("point",)

    def __init__(self, channels: int):
        super().__init__()
        self.dense = self._branch(channels, 3)
        self.point = self._branch(channels, 1)

    @staticmethod
    def _branch(channels: int, k: int) -> nn.Sequential:
        """Return a depthwise k x k convolution without bias and its batch norm."""
        conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.dense(x) + self.point(x) + x

    def fuse(self) -> nn.Module:
        """Return one depthwise 3x3 convolution with bias."""
        dense, point = (
            fold_bn(cast(nn.Conv2d, b[0]), cast(nn.BatchNorm2d, b[1]))
            for b in (self.dense, self.point)
        )
        weight = dense.weight.detach() + F.pad(point.weight.detach(), (1, 1, 1, 1))
        weight[:, :, 1, 1] += 1  # the identity
        dense.weight = nn.Parameter(weight)
        bias = cast(Tensor, dense.bias).detach() + cast(Tensor, point.bias).detach()
        dense.bias = nn.Parameter(bias)
        return dense


class Gate(nn.Module):
    """Squeeze-and-excite (Hu 2018) with a quarter of the width as hidden width.

    The hidden width is rounded to a multiple of 8, halves up, and is at least 8.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


class ChannelMixer(nn.Module):
    """1x1 to twice the width, activation, 1x1 back, residual."""

    def __init__(self, channels: int, act: Act):
        super().__init__()
        self.expand = Conv(channels, 2 * channels, act=act)
        self.project = Conv(2 * channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x + self.project(self.expand(x))


def block(channels: int, gated: bool, act: Act) -> nn.Sequential:
    """Return a token mixer, a gate where asked for, and a channel mixer."""
    gate = [Gate(channels)] if gated else []
    return nn.Sequential(RepDepthwise(channels), *gate, ChannelMixer(channels, act))


def down(c1: int, c2: int, act: Act) -> nn.Sequential:
    """Return the down-sampling between stages: (N, C1, H, W) -> (N, C2, H/2, W/2)."""
    return nn.Sequential(
        Conv(c1, c1, 3, 2, g=c1, act=False), Conv(c1, c2, act=False), ChannelMixer(c2, act)
    )


@BLOCKS.register()
class RepViT(nn.Module):
    """Backbone that gives five maps; see the module."""

    def __init__(self, c1: int, width: int, depths: tuple[int, ...], act: Act = "GELU"):
        super().__init__()
        last = len(depths) - 1
        stem = nn.Sequential(
            Conv(c1, width // 2, 3, 2, act=act), Conv(width // 2, width, 3, 2, act=False)
        )
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            channels = width * 2**i
            first = down(channels // 2, channels, act) if i else stem
            gated = [j % 2 == 0 for j in range(depth)]
            if i < last:
                gated.append(False)  # the block before the down-sampling
            self.stages.append(nn.Sequential(first, *(block(channels, g, act) for g in gated)))

    @classmethod
    def from_yaml(cls, context: BuildContext, size: str = "m1", act: Act | None = None) -> "RepViT":
        """Build the block from `[size, act]`; GELU where no activation is given."""
        width, depths = size_of(SIZES, size, "RepViT")
        return cls(context.c1, width, depths, "GELU" if act is None else act)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        """Map (N, C1, H, W) to five maps: None, then strides 4 to 32."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return five_maps(maps)


register_sizes(RepViT, {f"repvit_{size}": size for size in SIZES})
