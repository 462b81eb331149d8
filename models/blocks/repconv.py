"""RepConv: three branches that train side by side and deploy as one convolution.

Paper: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021; the name is YOLOv7's
(Wang 2022).

Structure: 3x3 + 1x1 + (where widths agree and the stride is 1) identity, each with a batch norm of
its own; activation after the sum.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: nothing known.

    - [-1, 1, RepConv, [256, 3, 1]]  # c2, k, s, p, g, act as Conv; k is 3

Pruning: the branches share their outputs and are pruned together; the identity ties outputs to
inputs. The 1x1 disappears in `fuse()` and counts for no MACs.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import DeployedConv, fold_bn, scale_and_shift
from models.registry import BLOCKS, Act, BuildContext, activation


@BLOCKS.register()
class RepConv(nn.Module):
    """Sum of a 3x3, a 1x1 and (where the shape allows) an identity branch (RepVGG, Ding 2021).

    Each branch has a batch norm of its own.
    """

    deploy_free = ("rbr_1x1",)  # children without cost in the deployed model

    def __init__(self, c1: int, c2: int, s: int = 1, g: int = 1, act: Act = "SiLU"):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(c1, c2, 3, s, 1, groups=g, bias=False), nn.BatchNorm2d(c2)
        )
        self.rbr_1x1 = nn.Sequential(
            nn.Conv2d(c1, c2, 1, s, 0, groups=g, bias=False), nn.BatchNorm2d(c2)
        )
        self.act = activation(act)

    @classmethod
    def from_yaml(
        cls,
        context: BuildContext,
        c2: int,
        k: int = 3,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: Act | None = None,
    ) -> "RepConv":
        """Build the block from the row arguments `[c2, k, s, p, g, act]`, as Conv.

        The sum of the branches needs k = 3 and p = 1 (or None).
        """
        if k != 3 or p not in (None, 1):
            raise ValueError(f"RepConv has k = 3 and p = 1 (or None), not k = {k}, p = {p}")
        return cls(context.c1, context.scale(c2), s, g, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.act(y if self.rbr_identity is None else y + self.rbr_identity(x))

    def fuse(self) -> nn.Module:
        """Return one 3x3 convolution with bias and the activation.

        Equation: the sum of the branches' folded kernels, the small ones padded to 3x3.
        """
        dense, point = (
            fold_bn(cast(nn.Conv2d, b[0]), cast(nn.BatchNorm2d, b[1]))
            for b in (self.rbr_dense, self.rbr_1x1)
        )
        weight = dense.weight.detach() + F.pad(point.weight.detach(), (1, 1, 1, 1))
        bias = cast(Tensor, dense.bias).detach() + cast(Tensor, point.bias).detach()
        if self.rbr_identity is not None:
            gain, shift = scale_and_shift(self.rbr_identity)
            index = torch.arange(len(gain), device=weight.device)
            own_input = index % weight.shape[1]  # position of each output's input in its group
            weight[index, own_input, 1, 1] += gain
            bias += shift
        dense.weight, dense.bias = nn.Parameter(weight), nn.Parameter(bias)
        return DeployedConv(dense, self.act)
