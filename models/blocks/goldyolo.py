"""Gather and distribute, the neck of Gold-YOLO.

Paper: Wang et al., "Gold-YOLO", NeurIPS 2023. All levels are gathered in one map, and features
computed from that map are injected into each level.

    gather       SimFusion_4in -> IFM (low levels, convolutions),
                 PyramidPoolAgg -> TopBasicLayer (high levels, attention)
    distribute   SimFusion_3in or AdvPoolFusion beside each level,
                 then InjectionMultiSum_Auto_pool, then a C3

Shapes: a gathering row gives one map (N, sum of parts, H, W), whose channels are one part for each
target, side by side, as [64, 32]. An injection reads its own part, pooled or enlarged to the size
of its level, and gives the (N, C2, H, W) of that level.

What differs: an injection is gated whether it pools or enlarges (in the published modules the gate
of the pooling branch lost its hard sigmoid); the scores of the attention are divided by sqrt(key),
as in Vaswani 2017; no drop path.

    - [[2, 3, 4, 6], 1, SimFusion_4in, []]
    - [-1, 1, IFM, [[64, 32]]]                     # widths of the parts, hidden, n
    - [6, 1, Conv, [512, 1, 1]]
    - [[3, 4, -1], 1, SimFusion_3in, [512]]
    - [[-1, 8], 1, InjectionMultiSum_Auto_pool, [512, [64, 32], 0]]  # c2, widths, number of a part
    - [[16, 12, 6], 1, PyramidPoolAgg, [352, 2]]   # c2, stride
    - [-1, 1, TopBasicLayer, [352, [64, 128]]]     # width of its input, widths of the parts, n
    - [[16, 13], 1, AdvPoolFusion, []]

Widths of IFM, injections, PyramidPoolAgg and TopBasicLayer are used as written: the width multiple
does not scale them.

Export: at image sizes that are multiples of 64 px; the older exporter of ONNX refuses to halve an
odd number of cells.

Pruning: all channels but the widths of the parts (injections select their parts by position). An
attention loses whole heads: query, key, value, and the inputs of the projection that read them. The
three convolutions of an injection are one group, the stream of the attention another.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.blocks.pooling import averaged
from models.blocks.repconv import RepConv
from models.pruning_rules import InnerLayer, detach_channels
from models.registry import BLOCKS, Act, BuildContext


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Map (N, C, H, W) to (N, C, *size): averaged to a smaller size, bilinear to a larger one."""
    height, width = size
    if (height, width) == tuple(x.shape[2:]):
        return x
    if height <= x.shape[2]:
        return averaged(x, size)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


@BLOCKS.register("SimFusion_4in")
class SimFusion4(nn.Module):
    """Four levels side by side, at the size of the third."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "SimFusion4":
        """Build the block; its row has no arguments."""
        return cls()

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, Hi, Wi), large maps first, to (N, sum of Ci, H, W).

        The size is that of the last map but one.
        """
        return torch.cat([resized(level, x[-2].shape[2:]) for level in x], 1)


@BLOCKS.register("SimFusion_3in")
class SimFusion3(nn.Module):
    """Three levels at the size of the second, fused by a 1x1 convolution.

    A level that does not have c2 channels gets a 1x1 convolution of its own first.
    """

    def __init__(self, channels: Sequence[int], c2: int, act: Act = "SiLU"):
        super().__init__()
        self.align = nn.ModuleList(
            nn.Identity() if c == c2 else Conv(c, c2, act=act) for c in channels
        )
        self.fuse_levels = Conv(len(channels) * c2, c2, act=act)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int) -> "SimFusion3":
        """Build the block from the row arguments `[c2]`."""
        return cls(context.in_channels, context.scale(c2), context.act)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, Hi, Wi), large maps first, to (N, C2, H, W) of the second."""
        size = x[1].shape[2:]
        aligned = [align(resized(level, size)) for align, level in zip(self.align, x, strict=True)]
        return self.fuse_levels(torch.cat(aligned, 1))


@BLOCKS.register()
class IFM(nn.Module):
    """Information fusion of the low levels.

    A 1x1 to `hidden` channels, `n` RepVGG blocks, a 1x1 to all parts.
    """

    no_prune = {"split": "injections cut their parts out by position"}

    def __init__(
        self, c1: int, parts: Sequence[int], hidden: int = 96, n: int = 3, act: Act = "SiLU"
    ):
        super().__init__()
        self.reduce = Conv(c1, hidden, act=act)
        self.m = nn.Sequential(*(RepConv(hidden, hidden, act="ReLU") for _ in range(n)))
        self.split = Conv(hidden, sum(parts), act=act)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, parts: Sequence[int], hidden: int = 96, n: int = 3
    ) -> "IFM":
        """Build the block from `[[width of each part], hidden, n]`; the widths are not scaled."""
        return cls(context.c1, parts, hidden, n, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, sum of parts, H, W)."""
        return detach_channels(self.split(self.m(self.reduce(x))))


@BLOCKS.register("InjectionMultiSum_Auto_pool")
class Injection(nn.Module):
    """A level's own map, gated and shifted by its part of the gathered map.

    The equation is local * gate + global.
    """

    def __init__(self, local: int, c2: int, parts: Sequence[int], part: int):
        super().__init__()
        # channels where the part begins and ends; pruning keeps the parts of gathering rows whole
        self.first = sum(parts[:part])
        self.last = self.first + parts[part]
        self.local = Conv(local, c2, act=False)
        self.shift = Conv(parts[part], c2, act=False)
        self.gate = Conv(parts[part], c2, act="Hardsigmoid")

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, parts: Sequence[int], part: int
    ) -> "Injection":
        """Build the block from `[c2, [width of each part], number of its part]`, not scaled.

        `from` is [level, gathered map].
        """
        local, gathered = context.in_channels
        if gathered != sum(parts) or not 0 <= part < len(parts):
            raise ValueError(
                f"part {part} of {list(parts)} does not fit an input of {gathered} channels"
            )
        return cls(local, c2, parts, part)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map [(N, C, H, W), (N, sum of parts, H', W')] to (N, C2, H, W)."""
        local, gathered = x[0], x[1][:, self.first : self.last]
        size = local.shape[2:]
        gated = self.local(local) * resized(self.gate(gathered), size)
        return gated + resized(self.shift(gathered), size)


@BLOCKS.register()
class AdvPoolFusion(nn.Module):
    """A larger level, averaged to the size of a smaller one, beside the smaller one."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "AdvPoolFusion":
        """Build the block; its row has no arguments, and `from` is [larger, smaller]."""
        return cls()

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map [(N, C1, H1, W1), (N, C2, H, W)] to (N, C1 + C2, H, W)."""
        return torch.cat((resized(x[0], x[1].shape[2:]), x[1]), 1)


@BLOCKS.register()
class PyramidPoolAgg(nn.Module):
    """All levels side by side, averaged to 1/stride of the last level's size; then 1x1."""

    def __init__(self, c1: int, c2: int, stride: int = 2, act: Act = "SiLU"):
        super().__init__()
        self.stride = stride
        self.conv = Conv(c1, c2, act=act)

    @classmethod
    def from_yaml(cls, context: BuildContext, c2: int, stride: int = 2) -> "PyramidPoolAgg":
        """Build the block from the row arguments `[c2, stride]`; c2 is not scaled."""
        return cls(sum(context.in_channels), c2, stride, context.act)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, Hi, Wi), the smallest last, to (N, C2, H, W).

        H and W are those of the last map divided by the stride, rounded up.
        """
        size = [-(-length // self.stride) for length in x[-1].shape[2:]]  # rounded up
        return self.conv(torch.cat([resized(level, size) for level in x], 1))


class GlobalAttention(nn.Module):
    """Attention of every cell to every other (TopFormer, Zhang 2022).

    The projections are `Conv`s; values are `ratio` times as wide as keys.
    """

    def __init__(self, c: int, heads: int = 4, key: int = 8, ratio: int = 2):
        super().__init__()
        # widths of the query, key and value of a head; `forward` reads the number of heads, which
        # pruning changes, from the layers
        self.widths = (key, key, key * ratio)
        self.query = Conv(c, heads * key, act=False)
        self.key = Conv(c, heads * key, act=False)
        self.value = Conv(c, heads * key * ratio, act=False)
        self.act = nn.ReLU(inplace=False)
        self.project = Conv(heads * key * ratio, c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape.

        Equation: project(relu(value x softmax(query x key / sqrt(width of a key)))).
        """
        layers = self.query, self.key, self.value
        query, key, value = (
            detach_channels(layer(x)).flatten(2).unflatten(1, (-1, width))
            for layer, width in zip(layers, self.widths, strict=True)
        )
        scores = query.transpose(2, 3) @ key * query.shape[2] ** -0.5
        weights = scores.softmax(3)  # (N, heads, cells, cells)
        attended = value @ weights.transpose(2, 3)  # (N, heads, width of a value, cells)
        return self.project(self.act(attended.flatten(1, 2).unflatten(2, x.shape[2:])))

    def unit_rule(self) -> list[InnerLayer]:
        """Tie each head to its query, key, value, and the inputs of `project` that read it."""

        def heads(layer: str, kind: str, width: int) -> InnerLayer:
            """Return the rule that says which head each channel of a layer belongs to."""
            conv: Any = self.get_submodule(layer.split(".")[0]).conv
            channels = range(conv.in_channels if kind == "in" else conv.out_channels)
            return InnerLayer(layer, kind, channels, [channel // width for channel in channels])

        rules = []
        for part, width in zip(("query", "key", "value"), self.widths, strict=True):
            rules += [heads(f"{part}.conv", "out", width), heads(f"{part}.bn", "norm", width)]
        return [*rules, heads("project.conv", "in", self.widths[2])]


class AttentionBlock(nn.Module):
    """Transformer block on maps, a residual around each of its two parts.

    The parts are attention, and a 1x1 to `ratio` x c, depthwise 3x3, ReLU6, 1x1 back.
    """

    def __init__(self, c: int, heads: int = 4, key: int = 8, ratio: int = 4):
        super().__init__()
        self.attention = GlobalAttention(c, heads, key)
        self.expand = Conv(c, ratio * c, act=False)
        self.wise = nn.Conv2d(ratio * c, ratio * c, 3, padding=1, groups=ratio * c)
        self.act = nn.ReLU6(inplace=True)
        self.shrink = Conv(ratio * c, c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        x = x + self.attention(x)
        return x + self.shrink(self.act(self.wise(self.expand(x))))


@BLOCKS.register()
class TopBasicLayer(nn.Module):
    """Information fusion of the high levels: `n` transformer blocks, then 1x1 to all parts."""

    no_prune = {"split": "injections cut their parts out by position"}

    def __init__(
        self, c: int, parts: Sequence[int], n: int = 2, heads: int = 4, key: int = 8, ratio: int = 4
    ):
        super().__init__()
        self.m = nn.Sequential(*(AttentionBlock(c, heads, key, ratio) for _ in range(n)))
        self.split = nn.Conv2d(c, sum(parts), 1)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c: int,
        parts: Sequence[int],
        n: int = 2,
        heads: int = 4,
        key: int = 8,
        ratio: int = 4,
    ) -> "TopBasicLayer":
        """Build the block from `[c, [width of each part], n, heads, key, ratio]`, not scaled.

        c is the number of channels of the input.
        """
        if c != context.c1:
            raise ValueError(f"its width is {c}, but its input has {context.c1} channels")
        return cls(c, parts, n, heads, key, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, sum of parts, H, W)."""
        return detach_channels(self.split(self.m(x)))
