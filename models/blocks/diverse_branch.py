"""DiverseBranchBlock: four branches that train side by side and deploy as one convolution.

Paper: Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR
2021.

Structure: the sum of four branches, then the activation.

1. k x k, BN
2. 1x1, BN
3. 1x1 (C1 to C1, starts as the identity), BN, k x k, BN
4. 1x1, BN, k x k mean, BN

Where a 1x1 precedes a k x k, the border is padded with the value that the inner BN gives for zero,
instead of zero: only then is the chain one convolution of a zero-padded image (transform III in the
paper). In deployment the sum is one k x k convolution.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: the 1x1 of branch 3 is a plain convolution that starts as the identity, while the
paper learns what is added to the identity, so that weight decay pulls elsewhere. No groups, and no
k = 1.

    - [-1, 1, DiverseBranchBlock, [64, 3, 1]]  # c2, k, s, p, g, act as Conv

Pruning: the branches share their outputs and are pruned together. The width inside branch 3 folds
away, so that pruning it would save nothing: it stays whole.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import DeployedConv, autopad, fold_bn, scale_and_shift
from models.registry import BLOCKS, Act, BuildContext, activation


def conv_bn(c1: int, c2: int, k: int = 1, s: int = 1, p: int = 0) -> nn.Sequential:
    """Return a convolution without bias and its batch norm."""
    return nn.Sequential(nn.Conv2d(c1, c2, k, s, p, bias=False), nn.BatchNorm2d(c2))


def folded(branch: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals convolution and batch norm."""
    conv = fold_bn(cast(nn.Conv2d, branch[0]), cast(nn.BatchNorm2d, branch[1]))
    return conv.weight.detach(), cast(Tensor, conv.bias).detach()


class Bordered(nn.Module):
    """1x1 convolution and batch norm, padded with a border of `width` cells.

    The border holds the values that convolution and batch norm give for zero.
    """

    def __init__(self, c1: int, c2: int, width: int):
        super().__init__()
        self.point = conv_bn(c1, c2)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H + 2 width, W + 2 width)."""
        _, shift = scale_and_shift(cast(nn.BatchNorm2d, self.point[1]))
        border = shift.view(1, -1, 1, 1)
        return F.pad(self.point(x) - border, (self.width,) * 4) + border


@BLOCKS.register()
class DiverseBranchBlock(nn.Module):
    """Sum of four branches that deploy as one convolution; see the module."""

    deploy_free = ("point", "inner", "outer", "mixed")
    no_prune = {"inner": "its width folds away, so that cutting it saves nothing"}

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, act: Act = "SiLU"):
        super().__init__()
        self.dense = conv_bn(c1, c2, k, s, k // 2)
        self.point = conv_bn(c1, c2, 1, s)
        self.inner, self.outer = Bordered(c1, c1, k // 2), conv_bn(c1, c2, k, s)
        self.mixed, self.mean = Bordered(c1, c2, k // 2), nn.AvgPool2d(k, s)
        self.mean_bn = nn.BatchNorm2d(c2)
        self.act = activation(act)
        nn.init.dirac_(cast(nn.Conv2d, self.inner.point[0]).weight)

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
    ) -> "DiverseBranchBlock":
        """Build the block from the row arguments `[c2, k, s, p, g, act]`, as Conv.

        Only an odd k from 3, p = k // 2 (or None) and g = 1 are possible.
        """
        odd = type(k) is int and k >= 3 and k % 2 == 1
        if not odd or autopad(k, p) not in (k // 2, autopad(k)) or g != 1:
            raise ValueError(
                "DiverseBranchBlock has an odd k from 3, p = k // 2 (or None) and g = 1, not k ="
                f" {k}, p = {p}, g = {g}"
            )
        return cls(context.c1, context.scale(c2), k, s, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        y = self.dense(x) + self.point(x)
        y = y + self.outer(self.inner(x))
        y = y + self.mean_bn(self.mean(self.mixed(x)))
        return self.act(y)

    def fuse(self) -> nn.Module:
        """Return one k x k convolution with bias and the activation.

        The kernel is the sum of the branches' kernels (transforms I to VI in the paper).
        """
        conv = fold_bn(cast(nn.Conv2d, self.dense[0]), cast(nn.BatchNorm2d, self.dense[1]))
        k = conv.weight.shape[-1]
        (point, point_bias), (inner, inner_bias) = folded(self.point), folded(self.inner.point)
        (outer, outer_bias), (mixed, mixed_bias) = folded(self.outer), folded(self.mixed.point)
        gain, shift = scale_and_shift(self.mean_bn)
        weight = conv.weight.detach() + F.pad(point, (k // 2,) * 4)
        weight = weight + torch.einsum("omhw,mi->oihw", outer, inner.flatten(1))
        # a mean weighs each of the k x k cells alike
        weight = weight + gain.view(-1, 1, 1, 1) * mixed / k**2
        bias = cast(Tensor, conv.bias).detach() + point_bias + outer_bias
        bias = bias + outer.sum((2, 3)) @ inner_bias
        bias = bias + gain * mixed_bias + shift
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return DeployedConv(conv, self.act)
