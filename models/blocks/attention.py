"""Gates over channels and places: SE, ECA, CBAM.

Each block keeps the shape of its input and stands alone in a row.

    - [-1, 1, SE, [16]]     # reduction
    - [-1, 1, ECA, []]      # k
    - [-1, 1, CBAM, [16]]   # reduction, k

The spelling of public files with the width in front is understood: SE, [1024]; CBAM, [1024, 7].

Structure:

    SE     squeeze and excitation (Hu, CVPR 2018): x * sigmoid(1x1(relu(1x1(mean over places))))
    ECA    efficient channel attention (Wang, CVPR 2020): the gate of a channel comes from the means
           of its neighbours
    CBAM   Woo, ECCV 2018: SE over mean and maximum, then a 7x7 gate over the places

Shapes: (N, C, H, W) -> the same.

What differs: SE and CBAM keep at least 4 hidden channels; ECA's 1-D convolution is written as a sum
of shifted copies.

Pruning: exact for SE, whose last convolution is pruned with the channels that it gates. ECA mixes a
channel with its neighbours, and CBAM takes mean and maximum over all channels: after pruning, the
remaining channels are gated differently, which `inexact` declares.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


def squeeze_excite(c: int, reduction: int, bias: bool) -> nn.Sequential:
    """Return 1x1 to c / reduction channels (at least 4), ReLU, 1x1 back to c."""
    hidden = max(c // reduction, 4)
    return nn.Sequential(
        nn.Conv2d(c, hidden, 1, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, c, 1, bias=bias),
    )


@BLOCKS.register()
class SE(nn.Module):
    """A gate for each channel, computed from the means of all channels."""

    keeps_channels = True

    def __init__(self, c: int, reduction: int = 16):
        super().__init__()
        self.m = squeeze_excite(c, reduction, bias=True)

    @classmethod
    def from_yaml(cls, context: BuildContext, reduction: int = 16) -> "SE":
        """Build the block from the row arguments `[reduction]`."""
        return cls(context.c1, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.m(x.mean((2, 3), keepdim=True)).sigmoid()


@BLOCKS.register()
class ECA(nn.Module):
    """A gate for each channel, computed from its own mean and those of its neighbours.

    The gates are a 1-D convolution of the means along the channels.
    """

    keeps_channels = True
    inexact = "the gate of a channel comes from its neighbours, and a cut gives it others"

    def __init__(self, c: int, k: int | None = None):
        """Draw the weights of the 1-D convolution.

        Args:
            c: Number of channels.
            k: Kernel size, odd; by default the paper's, (log2(c) + 1) / 2 rounded down, plus 1
                where that is even.
        """
        super().__init__()
        size = k or int((math.log2(c) + 1) / 2) | 1
        # drawn as PyTorch's own 1-D convolution draws its weights
        self.weight = nn.Parameter(torch.empty(size).uniform_(-1, 1) / math.sqrt(size))

    @classmethod
    def from_yaml(cls, context: BuildContext, k: int | None = None) -> "ECA":
        """Build the block from the row arguments `[k]`; by default k follows from the width."""
        if k is not None and k % 2 == 0:
            raise ValueError(f"k is {k}; the window needs a middle, so an odd number")
        return cls(context.c1, k)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        means = detach_channels(x.mean((2, 3)))
        size, channels = len(self.weight), means.shape[1]
        padded = F.pad(means, (size // 2, size // 2))
        gate = sum(padded[:, j : j + channels] * self.weight[j] for j in range(size))
        assert isinstance(gate, Tensor)
        return x * detach_channels(gate.sigmoid())[..., None, None]


@BLOCKS.register()
class CBAM(nn.Module):
    """A gate for each channel, then a gate for each place."""

    keeps_channels = True
    no_prune = {"place": "one gate for all channels"}
    inexact = "the gate of a place comes from the mean and the maximum over all channels"

    def __init__(self, c: int, reduction: int = 16, k: int = 7):
        super().__init__()
        self.m = squeeze_excite(c, reduction, bias=False)
        self.place = nn.Conv2d(2, 1, k, padding=k // 2, bias=False)

    @classmethod
    def after_width(cls, args: list[Any]) -> list[Any]:
        """Return the row arguments of `[width, k]`: a lone 3 or 7 is the window, as published."""
        return [16, *args] if len(args) == 1 and args[0] in (3, 7) else args

    @classmethod
    def from_yaml(cls, context: BuildContext, reduction: int = 16, k: int = 7) -> "CBAM":
        """Build the block from the row arguments `[reduction, k]`."""
        return cls(context.c1, reduction, k)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        n = len(x)
        summary = torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)))
        logits = self.m(summary)  # (2 N, C, 1, 1): from the means, then from the maxima
        x = x * (logits[:n] + logits[n:]).sigmoid()
        mean = detach_channels(x.mean(1, keepdim=True))
        maximum = detach_channels(x.amax(1, keepdim=True))
        logits = self.place(torch.cat((mean, maximum), 1))  # (N, 1, H, W)
        return x * detach_channels(logits.sigmoid())
