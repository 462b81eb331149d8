"""DCNv2: a deformable convolution, whose kernel samples its input at predicted places.

Paper: Zhu et al., "Deformable ConvNets v2", CVPR 2019, equation 1: y(p) = sum over k of w_k x(p +
p_k + dp_k) m_k. A tap is one of the k x k sampling points of the kernel. A plain convolution of the
same input gives the shift dp_k of each tap (rows, then columns) and, through a sigmoid, its weight
m_k.

Structure: `offset` (k x k, with bias, zero at first, 3 k^2 outputs) and `conv` (the deformable
kernel) both read x; batch norm, activation.
Shapes: (N, C1, H, W) -> (N, C2, H/s, W/s).
What differs: the kernel has no bias of its own; the shift of the batch norm takes its place.

    - [-1, 1, DCNv2, [128, 3, 1]]   # c2, k, s[, act]

Pruning: the kernel is pruned as that of any convolution. The inputs of `offset` follow; its outputs
are positions and stay whole.
Export: ncnn and older opsets of ONNX have no such operator; a trace writes the same sum with
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
    """A convolution that gets shift and weight of each tap with its input.

    Weights, pruning and counts of operations are those of any other convolution.
    """

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # two inputs more
        """Convolve a map at shifted taps; the result is (N, C2, H', W').

        Args:
            x: Map (N, C1, H, W).
            offset: Shifts in cells, (N, 2 k^2, H', W'): row and column of each tap.
            mask: Weights of the taps, (N, k^2, H', W').
        """
        if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return deform_by_sampling(self, x, offset, mask)
        geometry = (self.stride, self.padding, self.dilation)
        return deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask)  # type: ignore[arg-type, call-arg]


def deform_by_sampling(conv: nn.Conv2d, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """Compute the deformable convolution by operators that exporters know.

    Each tap is sampled and weighed; one 1x1 convolution over all taps follows. Shapes are those of
    `DeformableConv2d.forward`.
    """
    height, width = offset.shape[2:]
    kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation

    def positions(axis: int, cells: int) -> Tensor:
        """Return the places of the unmoved taps along one axis, (taps of the axis, cells)."""
        taps = torch.arange(kernel[axis], device=x.device, dtype=x.dtype) * dilation[axis]
        first = torch.arange(cells, device=x.device, dtype=x.dtype) * stride[axis]
        return taps[:, None] + (first - int(padding[axis]))

    taps = kernel[0] * kernel[1]
    shift_y, shift_x = offset.unflatten(1, (taps, 2)).unbind(2)  # (N, taps, H', W') each
    rows = positions(0, height).repeat_interleave(kernel[1], 0)[:, :, None] + shift_y
    columns = positions(1, width).repeat(kernel[0], 1)[:, None, :] + shift_x
    # from cells to the -1..1 of `grid_sample`
    grid = torch.stack(((2 * columns + 1) / x.shape[3] - 1, (2 * rows + 1) / x.shape[2] - 1), -1)
    grid = grid.flatten(1, 2)  # (N, taps x H', W', 2)
    sampled = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    sampled = sampled.unflatten(2, (taps, height)) * mask.unsqueeze(1)  # (N, C1, taps, H', W')
    return F.conv2d(sampled.flatten(1, 2), conv.weight.flatten(1)[..., None, None], conv.bias)


class Offsets(nn.Module):
    """Predict shift and weight of each tap of a deformable convolution (DCNv2, section 3.1).

    The prediction is a plain convolution that is zero at first.
    """

    no_prune = {"conv": "positions and weights of the taps, as many as the kernel has"}

    def __init__(self, c1: int, k: int = 3, s: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c1, 3 * k * k, k, s, k // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C1, H, W) to shifts (N, 2 k^2, H/s, W/s) and weights (N, k^2, H/s, W/s).

        Shifts are in cells, weights in 0..1.
        """
        y = self.conv(x)
        taps = y.shape[1] // 3
        shifts, weights = y[:, : 2 * taps], y[:, 2 * taps :].sigmoid()
        return detach_channels(shifts), detach_channels(weights)


@BLOCKS.register()
class DCNv2(nn.Module):
    """Deformable convolution with weighted taps, batch norm, activation."""

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
        """Build the block from the row arguments `[c2, k, s, act]`."""
        return cls(context.c1, context.scale(c2), k, s, context.pick_act(act))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x, *self.offset(x))))

    def fuse(self) -> "DCNv2":
        """Return a copy with the batch norm folded into the deformable kernel."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        fused = copy.deepcopy(self)
        fused.conv, fused.bn = fold_bn(self.conv, self.bn), nn.Identity()  # type: ignore[assignment]  # `fold_bn` keeps the kernel's class
        return fused
