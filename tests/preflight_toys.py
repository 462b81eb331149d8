"""Blocks that the dependency graph cannot follow, and blocks with rules of their own."""

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.pruning_rules import InnerLayer, detach_channels
from models.registry import BuildContext


class Square(nn.Module):
    """A block that keeps the number of channels; YAML: `[]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(channels, channels, 1)

    @classmethod
    def from_yaml(cls, context: BuildContext):
        return cls(context.c1)


class Halves(Square):
    """Two halves of one convolution's channels, as in C2f, with sizes that are Python ints."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.half = channels // 2
        self.inner = Conv(self.half, self.half, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).split((self.half, self.half), 1)
        return torch.cat((a, self.inner(b)), 1)


class Shuffle(Square):
    """A dense and a depthwise half whose channels alternate, as in GSConv.

    The pruning library divides by zero on this block.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv, self.wise = (
            Conv(channels, channels // 2, 1),
            Conv(channels // 2, channels // 2, 3, g=channels // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.cat((y, self.wise(y)), 1)
        n, c, h, w = y.shape
        turns = y.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, n, c // 2, h, w)
        return torch.cat((turns[0], turns[1]), 1)


class FixedGate(Square):
    """A coupling that no graph sees: a buffer of the original width."""

    gate: Tensor

    def __init__(self, channels: int):
        super().__init__(channels)
        self.register_buffer("gate", torch.linspace(0.5, 1.5, channels).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gate


class Reversed(Square):
    """A sum with its own channels in reverse order.

    The block still runs after any pruning, but computes something else, because the order is fixed
    by position.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flip(1) + self.conv(x)


class Partial(nn.Module):
    """A convolution over the first channels while the others pass, as FasterNet's PConv.

    No part of the block can be traced.
    """

    width_attributes = ("first",)

    def __init__(self, channels: int):
        super().__init__()
        self.first = channels // 4
        self.conv = nn.Conv2d(self.first, self.first, 3, padding=1, bias=False)

    @classmethod
    def from_yaml(cls, context: BuildContext):
        return cls(context.c1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, : self.first], x[:, self.first :]
        return torch.cat((self.conv(a), b), 1)

    def channel_rule(self) -> list[InnerLayer]:
        mine = range(self.first)
        return [InnerLayer("conv", "in", mine, mine), InnerLayer("conv", "out", mine, mine)]

    def update_widths(self) -> None:
        self.first = self.conv.out_channels


class Hidden(nn.Module):
    """A convolution whose weights are used without calling it, as in deformable convolution.

    Inputs and outputs of the block are different channels.
    """

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.weights = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)

    @classmethod
    def from_yaml(cls, context: BuildContext, outputs: int):
        return cls(context.c1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        columns = nn.functional.unfold(x, 3, padding=1)
        return (self.weights.weight.flatten(1) @ columns).unflatten(2, x.shape[2:])

    def macs(self, x: Tensor, output: Tensor) -> int:
        return output.numel() * self.weights.weight[0].numel()

    def channel_rule(self) -> list[InnerLayer]:
        outputs, inputs = (range(n) for n in self.weights.weight.shape[:2])
        return [
            InnerLayer("weights", "in", inputs, inputs, "in"),
            InnerLayer("weights", "out", outputs, outputs, "out"),
        ]


class Spatial(Square):
    """Two maps computed from all channels, and two gates from these maps, as in LSK.

    The number of gates stays two.
    """

    no_prune = {"squeeze": "two gates"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.other, self.squeeze = Conv(channels, channels, 3), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x), self.other(x)
        both = torch.cat((a, b), 1)
        total = detach_channels(both.sum(1, keepdim=True))
        energy = detach_channels(both.square().sum(1, keepdim=True))
        gates = detach_channels(self.squeeze(torch.cat((total, energy), 1)).sigmoid())
        return a * gates[:, :1] + b * gates[:, 1:]


class Attention(Square):
    """Attention of every cell to every other.

    The cost of the matrix products between activations shrinks with the channels.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.query, self.key = Conv(channels, channels, 1), Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x).flatten(2), self.key(x).flatten(2)
        weights = detach_channels((query.transpose(1, 2) @ key).softmax(2))
        return (self.conv(x).flatten(2) @ weights).unflatten(2, x.shape[2:])


TOYS = (Halves, Shuffle, FixedGate, Reversed, Partial, Hidden, Spatial, Attention)


def with_row(block: str, *args: object) -> dict[str, object]:
    """Return a YAML with a row of this block between convolutions."""
    return {
        "nc": 2,
        "anchors": [[10, 13, 16, 30]],
        "backbone": [
            [-1, 1, "Conv", [16, 3, 4]],
            [-1, 1, "Conv", [16, 3, 4]],
            [-1, 1, block, list(args)],
            [-1, 1, "Conv", [24, 3, 2]],
        ],
        "head": [[-1, 1, "Conv", [24, 1, 1]], [[-1], 1, "Detect", ["nc", "anchors"]]],
    }
