"""Joining levels with learned weights: the fast normalised fusion of BiFPN (EfficientDet, Tan, CVPR
2020).

    w_i = relu(v_i) / (sum of relu(v_j) + 1e-4), v starts at 1

    - [[-1, 6], 1, BiFPN_Concat, [1]]      the maps side by side, each times its weight; any number
      of them
    - [[-1, 6, 14], 1, BiFPN_Add, []]      their weighted sum, for maps of one shape

Shapes: (N, sum of Ci, H, W), and that of the maps, (N, C, H, W).

What differs: the paper adds; the concatenation is what YOLO necks make of it.

Pruning: exactly; a weight belongs to a map and not to a channel.
"""

import torch
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


class _Weighted(nn.Module):
    """Maps times their normalised weights."""

    def __init__(self, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def weighted(self, x: list[Tensor]) -> list[Tensor]:
        """Each map times its share of 1."""
        share = self.weight.relu()
        share = detach_channels(share / (share.sum() + 1e-4))
        return [level * share[i] for i, level in enumerate(x)]


@BLOCKS.register("BiFPN_Concat")
class BiFPNConcat(_Weighted):
    """Weighted maps side by side."""

    def __init__(self, inputs: int, dimension: int = 1):
        super().__init__(inputs)
        self.d = dimension

    @classmethod
    def from_yaml(cls, context: BuildContext, dimension: int = 1) -> "BiFPNConcat":
        """`[dimension]`."""
        return cls(len(context.in_channels), dimension)

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of (N, Ci, H, W) -> (N, sum of Ci, H, W)."""
        return torch.cat(self.weighted(x), self.d)


@BLOCKS.register("BiFPN_Add")
class BiFPNAdd(_Weighted):
    """The weighted sum of maps."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "BiFPNAdd":
        """`[]`."""
        if len(set(context.in_channels)) != 1:
            raise ValueError(
                f"it adds maps of one width, 'from' gives {list(context.in_channels)}; use"
                " BiFPN_Concat"
            )
        return cls(len(context.in_channels))

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of (N, C, H, W) -> (N, C, H, W)."""
        first, *rest = self.weighted(x)
        for level in rest:
            first = first + level
        return first
