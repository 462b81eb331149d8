"""Pooling: plain, and spatial pyramids that widen the field of view at the end of a backbone.

    MP        k x k maximum, stride k: (N, C, H, W) -> (N, C, H/k, W/k)
    SP        k x k maximum, stride s, padded: (N, C, H, W) -> (N, C, H/s, W/s)
    SPP       1x1 to half, maxima of several sizes beside it, 1x1 (He, ECCV 2014):
              (N, C1, H, W) -> (N, C2, H, W)
    SPPF      the same by three small maxima one after another (YOLOv5): the same shapes
    SPPCSPC   SPP in a CSP block, four convolutions on its path and one beside it (YOLOv7,
              Wang 2022): the same shapes

    - [-1, 1, MP, []]             # k
    - [-1, 1, SP, [5]]            # k, s
    - [-1, 1, SPP, [512]]         # c2, [k, ...]
    - [-1, 1, SPPF, [1024, 5]]    # c2, k
    - [-1, 1, SPPCSPC, [512]]     # c2, n, shortcut, g, e, [k, ...]

What differs: He's pyramid pools to maps of fixed size; these blocks keep the size of the map, as
YOLO uses them.

Pruning: all channels. A channel is pruned with its pooled copies: the convolution over the joined
maps loses the inputs of all of them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.registry import BLOCKS, Act, BuildContext


def averaged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pool (N, C, H, W) to (N, C, *size) by means; `size` is (H', W'), not larger than the map.

    The cells that are averaged are as equal in size as they can be.
    """
    return _to_size(x, size, F.avg_pool2d, F.adaptive_avg_pool2d)


def strongest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pool (N, C, H, W) to (N, C, *size) by maxima; else as `averaged`."""
    return _to_size(x, size, F.max_pool2d, F.adaptive_max_pool2d)


def _to_size(
    x: Tensor, size: Sequence[int], plain: Callable[..., Tensor], adaptive: Callable[..., Tensor]
) -> Tensor:
    """Pool a map to (N, C, *size) by one of two functions.

    The older exporter of ONNX refuses adaptive pooling behind a map that was resized, so plain
    pooling is used where all cells have one size.

    Args:
        x: Map (N, C, H, W).
        size: Height and width of the result, not above those of the map.
        plain: Pooling by kernel size.
        adaptive: Pooling by output size.
    """
    (rows, columns), (height, width) = x.shape[2:], size
    if rows % height == 0 and columns % width == 0:
        return plain(x, (int(rows // height), int(columns // width)))
    return adaptive(x, (height, width))


def same_pool(k: int) -> nn.MaxPool2d:
    """Return k x k max pooling that keeps the size of the map."""
    return nn.MaxPool2d(k, stride=1, padding=k // 2)


@BLOCKS.register()
class MP(nn.Module):
    """k x k max pooling with stride k."""

    keeps_channels = True

    def __init__(self, k: int = 2):
        super().__init__()
        self.m = nn.MaxPool2d(k, k)

    @classmethod
    def from_yaml(cls, context: BuildContext, k: int = 2) -> "MP":
        """Build the block from the row arguments `[k]`."""
        return cls(k)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/k, W/k)."""
        return self.m(x)


@BLOCKS.register()
class SP(nn.Module):
    """k x k max pooling with stride s, padded so that s = 1 keeps the size."""

    keeps_channels = True

    def __init__(self, k: int = 3, s: int = 1):
        super().__init__()
        self.m = nn.MaxPool2d(k, s, k // 2)

    @classmethod
    def from_yaml(cls, context: BuildContext, k: int = 3, s: int = 1) -> "SP":
        """Build the block from the row arguments `[k, s]`."""
        return cls(k, s)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/s, W/s)."""
        return self.m(x)


@BLOCKS.register()
class SPP(nn.Module):
    """Spatial pyramid pooling (He 2014): several pool sizes side by side."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), act: Act = "SiLU"):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, act=act)
        self.m = nn.ModuleList(same_pool(size) for size in k)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int, k: Sequence[int] = (5, 9, 13)) -> "SPP":
        """Build the block from the row arguments `[c2, [k, ...]]`."""
        return cls(context.c1, context.scale(c2), k, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


@BLOCKS.register()
class SPPF(nn.Module):
    """SPP made faster: three k x k pools one after another equal k, 2k-1 and 3k-2 side by side."""

    def __init__(self, c1: int, c2: int, k: int = 5, act: Act = "SiLU"):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(4 * hidden, c2, 1, act=act)
        self.m = same_pool(k)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int, k: int = 5) -> "SPPF":
        """Build the block from the row arguments `[c2, k]`."""
        return cls(context.c1, context.scale(c2), k, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        return self.cv2(torch.cat((x, once, twice, self.m(twice)), 1))


@BLOCKS.register()
class SPPCSPC(nn.Module):
    """Spatial pyramid pooling in a CSP block (YOLOv7, Wang 2022); the hidden width is 2 e c2."""

    def __init__(
        self, c1: int, c2: int, e: float = 0.5, k: Sequence[int] = (5, 9, 13), act: Act = "SiLU"
    ):
        super().__init__()
        hidden = int(2 * c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(c1, hidden, 1, act=act)
        self.cv3 = Conv(hidden, hidden, 3, act=act)
        self.cv4 = Conv(hidden, hidden, 1, act=act)
        self.m = nn.ModuleList(same_pool(size) for size in k)
        self.cv5 = Conv((len(k) + 1) * hidden, hidden, 1, act=act)
        self.cv6 = Conv(hidden, hidden, 3, act=act)
        self.cv7 = Conv(2 * hidden, c2, 1, act=act)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 1,
        e: float = 0.5,
        k: Sequence[int] = (5, 9, 13),
    ) -> "SPPCSPC":
        """Build the block from the row arguments `[c2, n, shortcut, g, e, [k, ...]]`.

        n, shortcut and g stand in YOLOv7's signature without effect.
        """
        return cls(context.c1, context.scale(c2), e, k, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        return self.cv7(torch.cat((y, self.cv2(x)), 1))
