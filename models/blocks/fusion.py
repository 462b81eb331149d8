"""Join levels with learned weights: the fast normalised fusion of BiFPN.

Paper: Tan et al., "EfficientDet", CVPR 2020.

    w_i = relu(v_i) / (sum of relu(v_j) + 1e-4), v starts at 1

    - [[-1, 6], 1, BiFPN_Concat, [1]]      # weighted maps side by side; any number of maps
    - [[-1, 6, 14], 1, BiFPN_Add, []]      # weighted sum of maps of one shape

Shapes: BiFPN_Concat gives (N, sum of Ci, H, W); BiFPN_Add gives the (N, C, H, W) of its inputs.

What differs: the paper adds the maps (BiFPN_Add); YOLO necks concatenate them (BiFPN_Concat).

Pruning: exact; a weight belongs to a map and not to a channel.
"""

import torch
from torch import Tensor, nn

from models.pruning_rules import detach_channels
from models.registry import BLOCKS, BuildContext


class _Weighted(nn.Module):
    """Base of the fusions: maps times their normalised weights."""

    def __init__(self, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def weighted(self, x: list[Tensor]) -> list[Tensor]:
        """Return each map times its weight; the weights add up to 1."""
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
        """Build the block from the row arguments `[dimension]`."""
        return cls(len(context.in_channels), dimension)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, H, W) to (N, sum of Ci, H, W)."""
        return torch.cat(self.weighted(x), self.d)


@BLOCKS.register("BiFPN_Add")
class BiFPNAdd(_Weighted):
    """Weighted sum of maps."""

    keeps_channels = True

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "BiFPNAdd":
        """Build the block; its row has no arguments."""
        if len(set(context.in_channels)) != 1:
            raise ValueError(
                f"it adds maps of one width, 'from' gives {list(context.in_channels)}; use"
                " BiFPN_Concat"
            )
        return cls(len(context.in_channels))

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, C, H, W) to (N, C, H, W)."""
        first, *rest = self.weighted(x)
        for level in rest:
            first = first + level
        return first
