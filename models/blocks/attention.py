"""Gates over channels and places: SE, ECA, CBAM.

Each gives a map of its input's shape and stands alone in a row.

    - [-1, 1, SE, [16]]     squeeze and excitation (Hu, CVPR 2018): x * sigmoid(1x1(relu(1x1(mean
      over places))))
    - [-1, 1, ECA, []]      efficient channel attention (Wang, CVPR 2020): the gate of a channel
      from its neighbours' means
    - [-1, 1, CBAM, [16]]   Woo, ECCV 2018: SE over mean and maximum, then a 7x7 gate over the
      places

Shapes: (N, C, H, W) -> the same.

What differs: SE and CBAM keep at least 4 hidden channels; ECA's 1-D convolution is written as a sum
of shifted copies.

Pruning: SE exactly, its last convolution goes with the channels it gates. ECA mixes a channel with
its neighbours, CBAM takes mean and maximum over all channels: once some are cut the others are
gated differently, which `inexact` declares.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


def squeeze_excite(c: int, reduction: int, bias: bool) -> nn.Sequential:
    """1x1 to c / reduction, ReLU, 1x1 back."""
    hidden = max(c // reduction, 4)
    return nn.Sequential(
        nn.Conv2d(c, hidden, 1, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, c, 1, bias=bias),
    )


@BLOCKS.register()
class SE(nn.Module):
    """A gate for each channel, from the means of all."""

    def __init__(self, c: int, reduction: int = 16):
        super().__init__()
        self.m = squeeze_excite(c, reduction, bias=True)

    @classmethod
    def from_yaml(cls, context: BuildContext, reduction: int = 16) -> "SE":
        """`[reduction]`."""
        return cls(context.c1, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x * self.m(x.mean((2, 3), keepdim=True)).sigmoid()


@BLOCKS.register()
class ECA(nn.Module):
    """A gate for each channel, from its own mean and those of its neighbours: a 1-D convolution
    along the channels."""

    inexact = "the gate of a channel comes from its neighbours, and a cut gives it others"

    def __init__(self, c: int, k: int | None = None):
        """`k`: odd; by default the paper's, the odd number below or at (log2(c) + 1) / 2, plus 1
        where that is even."""
        super().__init__()
        size = k or int((math.log2(c) + 1) / 2) | 1
        self.weight = nn.Parameter(
            torch.empty(size).uniform_(-1, 1) / math.sqrt(size)
        )  # as PyTorch's own 1-D convolution

    @classmethod
    def from_yaml(cls, context: BuildContext, k: int | None = None) -> "ECA":
        """`[k]`, by default from the width."""
        if k is not None and k % 2 == 0:
            raise ValueError(f"k is {k}; the window needs a middle, so an odd number")
        return cls(context.c1, k)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        means = detach_channels(x.mean((2, 3)))
        size, channels = len(self.weight), means.shape[1]
        padded = F.pad(means, (size // 2, size // 2))
        gate = sum(padded[:, j : j + channels] * self.weight[j] for j in range(size))
        assert isinstance(gate, Tensor)
        return x * detach_channels(gate.sigmoid())[..., None, None]


@BLOCKS.register()
class CBAM(nn.Module):
    """A gate for each channel, then one for each place."""

    no_prune = {"place": "one gate for all channels"}
    inexact = "the gate of a place comes from the mean and the maximum over all channels"

    def __init__(self, c: int, reduction: int = 16, k: int = 7):
        super().__init__()
        self.m = squeeze_excite(c, reduction, bias=False)
        self.place = nn.Conv2d(2, 1, k, padding=k // 2, bias=False)

    @classmethod
    def from_yaml(cls, context: BuildContext, reduction: int = 16, k: int = 7) -> "CBAM":
        """`[reduction, k]`."""
        return cls(context.c1, reduction, k)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        n = len(x)
        both = self.m(torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))))
        x = x * (both[:n] + both[n:]).sigmoid()
        seen = torch.cat(
            (detach_channels(x.mean(1, keepdim=True)), detach_channels(x.amax(1, keepdim=True))), 1
        )
        return x * detach_channels(self.place(seen).sigmoid())
