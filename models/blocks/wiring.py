"""Blocks without parameters that join rows, and PyTorch's own layers under their `nn.` names.

    Concat     maps side by side: list of (N, Ci, H, W) -> (N, sum of Ci, H, W)
    Shortcut   sum of maps: list of (N, C, H, W) -> (N, C, H, W)

    - [[-1, 6], 1, Concat, [1]]  # dimension
    - [[-1, -3], 1, Shortcut, []]
    - [-1, 1, nn.Upsample, [None, 2, nearest]]
    - [-1, 1, nn.Conv2d, [64, 3, 2, 1]]  # the input channels are put in front

What differs: nothing; PyTorch's layers are used as they are. nn.Conv2d has a bias and neither batch
norm nor activation.

Pruning: Concat keeps its inputs apart, Shortcut ties them. nn.Conv2d is pruned; nn.BatchNorm2d and
layers without parameters follow. nn.ConvTranspose2d stays whole, and so do all inputs of
nn.PixelShuffle.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.registry import BLOCKS, BuildContext


@BLOCKS.register()
class Concat(nn.Module):
    """Join maps along one dimension."""

    def __init__(self, dimension: int = 1):
        super().__init__()
        self.d = dimension

    @classmethod
    def from_yaml(cls, context: BuildContext, dimension: int = 1) -> "Concat":
        """Build the block from the row arguments `[dimension]`."""
        return cls(dimension)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, H, W) to (N, sum of Ci, H, W)."""
        return torch.cat(x, self.d)


@BLOCKS.register()
class Shortcut(nn.Module):
    """Add maps of one shape."""

    @classmethod
    def from_yaml(cls, context: BuildContext, dimension: int = 0) -> "Shortcut":
        """Build the block; YOLOv7's files write a `dimension`, which has no meaning."""
        return cls()

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, C, H, W) to (N, C, H, W)."""
        total = x[0]
        for other in x[1:]:
            total = total + other
        return total


class _TorchLayer:
    """A layer of `torch.nn` in a YAML row.

    `leading` names the arguments that the model provides before those of the row: none, `in` (input
    channels), or `in, out` (input channels, and output channels scaled by the width).
    """

    def __init__(self, layer: type[nn.Module], leading: str = ""):
        self.layer = layer
        self.leading = leading

    def from_yaml(self, context: BuildContext, *args: Any, **kwargs: Any) -> nn.Module:
        """Build the layer from the row arguments and the leading ones that the model provides."""
        if self.leading == "in":
            return self.layer(context.c1, *args, **kwargs)
        if self.leading == "in, out":
            c2 = args[0] if args else kwargs.pop("out_channels")
            return self.layer(context.c1, context.scale(c2), *args[1:], **kwargs)
        return self.layer(*args, **kwargs)


for _layer in (
    nn.Upsample,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ZeroPad2d,
    nn.Identity,
    nn.PixelShuffle,
):
    BLOCKS.register(f"nn.{_layer.__name__}")(_TorchLayer(_layer))
BLOCKS.register("nn.BatchNorm2d")(_TorchLayer(nn.BatchNorm2d, "in"))
BLOCKS.register("nn.Conv2d")(_TorchLayer(nn.Conv2d, "in, out"))
BLOCKS.register("nn.ConvTranspose2d")(_TorchLayer(nn.ConvTranspose2d, "in, out"))
