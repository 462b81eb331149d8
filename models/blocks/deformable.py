"""Convolutions whose taps move: DCNv2.

Paper: Zhu et al., "Deformable ConvNets v2", CVPR 2019, equation 1: y(p) = sum over k of w_k x(p +
p_k + dp_k) m_k, where a plain convolution on the same input gives the shift dp_k (rows, then
columns) and, through a sigmoid, the weight m_k of each tap.

Structure: `offset` (k x k, with bias, zero at first, 3 k^2 outputs) and `conv` (the moving kernel)
both read x; batch norm, act.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: the kernel has no bias of its own, the batch norm's shift is one.

    - [-1, 1, DCNv2, [128, 3, 1]]   # c2, k, s[, act]

Pruning: the kernel is cut as any convolution. Of `offset` the inputs follow, its outputs are
positions and stay whole.
Export: ONNX's older opsets have no such operator; while exporting, the same sum is written with
`grid_sample` (opset 16).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from models.blocks.conv import fold_bn
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act, BuildContext, activation


class DeformableConv2d(nn.Conv2d):
    """A convolution that is told where its taps are and what each weighs; widths, cuts and counts
    as of any other."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # two inputs more
        """Map (N, C1, H, W), shifts in cells (N, 2 k^2, H', W'), weights (N, k^2, H', W') -> (N,
        C2, H', W')."""
        if torch.onnx.is_in_onnx_export():
            return deform_by_sampling(self, x, offset, mask)
        geometry = (self.stride, self.padding, self.dilation)
        return deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask)  # type: ignore[arg-type, call-arg]


def deform_by_sampling(conv: nn.Conv2d, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """The deformable convolution in operators that exporters know: sample each tap, weigh it, one
    1x1 convolution over all."""
    height, width = offset.shape[2:]
    kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation

    def positions(axis: int, cells: int) -> Tensor:
        """(taps along the axis, cells): where the unmoved taps are."""
        taps = torch.arange(kernel[axis], device=x.device, dtype=x.dtype) * dilation[axis]
        first = torch.arange(cells, device=x.device, dtype=x.dtype) * stride[axis] - int(
            padding[axis]
        )
        return taps[:, None] + first

    shift_y, shift_x = offset.unflatten(1, (kernel[0] * kernel[1], 2)).unbind(
        2
    )  # (N, taps, H', W') each
    y = positions(0, height).repeat_interleave(kernel[1], 0)[:, :, None] + shift_y
    x_ = positions(1, width).repeat(kernel[0], 1)[:, None, :] + shift_x
    grid = torch.stack(((2 * x_ + 1) / x.shape[3] - 1, (2 * y + 1) / x.shape[2] - 1), -1)
    sampled = F.grid_sample(
        x, grid.flatten(1, 2), padding_mode="zeros", align_corners=False
    )  # (N, C1, taps x H', W')
    sampled = sampled.unflatten(2, (kernel[0] * kernel[1], height)) * mask.unsqueeze(1)
    return F.conv2d(sampled.flatten(1, 2), conv.weight.flatten(1)[..., None, None], conv.bias)


class Offsets(nn.Module):
    """Where the taps of a deformable convolution are, and what each weighs: a plain convolution,
    zero at first (DCNv2, 3.1)."""

    no_prune = {"conv": "positions and weights of the taps, as many as the kernel has"}

    def __init__(self, c1: int, k: int = 3, s: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c1, 3 * k * k, k, s, k // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C1, H, W) -> shifts (N, 2 k^2, H/s, W/s), weights (N, k^2, H/s, W/s) in 0..1."""
        y = self.conv(x)
        taps = y.shape[1] // 3
        return detach_channels(y[:, : 2 * taps]), detach_channels(y[:, 2 * taps :].sigmoid())


@BLOCKS.register()
class DCNv2(nn.Module):
    """Deformable convolution with weights, batch norm, activation."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, act: Act = "SiLU"):
        super().__init__()
        self.offset = Offsets(c1, k, s)
        self.conv = DeformableConv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2)
        self.act = activation(act)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, c2: int, k: int = 3, s: int = 1, act: Act | None = None
    ) -> "DCNv2":
        """`[c2, k, s, act]`."""
        return cls(context.c1, context.scale(c2), k, s, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, C2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x, *self.offset(x))))

    def fuse(self) -> "DCNv2":
        """The batch norm folded into the moving kernel."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        fused = copy.deepcopy(self)
        fused.conv, fused.bn = fold_bn(self.conv, self.bn), nn.Identity()  # type: ignore[assignment]  # of the kernel's own kind
        return fused
