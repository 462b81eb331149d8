"""Upsampling that depends on the content, in the place of `nn.Upsample`: CARAFE and DySample.

Structure:

    CARAFE     Wang, ICCV 2019: each output is a weighted mean of the k x k cells around it, with
               predicted weights
    DySample   Liu, ICCV 2023: each output is sampled at a predicted place near its own

    - [-1, 1, CARAFE, [2, 5]]    # scale, k, hidden
    - [-1, 1, DySample, [2]]     # scale

Shapes: x (N, C, H, W) -> (N, C, scale H, scale W).

What differs: DySample has one group of channels (the paper's has 4, with an offset each) and the
static scope of 0.25 cells.

Pruning: the channels pass through one by one and are pruned with the layers before and after;
CARAFE's hidden width is a group of its own. The predicted kernels and offsets stay whole. Weighing
and sampling are element-wise work, which MACs do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.conv import Conv
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act, BuildContext


@BLOCKS.register()
class CARAFE(nn.Module):
    """Content-aware reassembly of features."""

    keeps_channels = True
    no_prune = {"encode": "the weights of a kernel"}

    def __init__(self, c: int, scale: int = 2, k: int = 5, hidden: int = 64, act: Act = "SiLU"):
        super().__init__()
        self.scale, self.k = scale, k
        self.compress = Conv(c, hidden, act=act)
        self.encode = nn.Conv2d(hidden, (scale * k) ** 2, 3, padding=1)

    @classmethod
    def from_yaml(
        cls, context: BuildContext, scale: int = 2, k: int = 5, hidden: int = 64
    ) -> "CARAFE":
        """Build the block from the row arguments `[scale, k, hidden]`; `hidden` is not scaled."""
        if k % 2 == 0:
            raise ValueError(f"k is {k}; the window needs a middle, so an odd number")
        return cls(context.c1, scale, k, hidden, context.act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, scale H, scale W); cells beyond the border are zero."""
        s, k = self.scale, self.k
        logits = detach_channels(self.encode(self.compress(x)))
        weights = F.pixel_shuffle(logits, s).softmax(1)  # (N, k k, s H, s W)
        height, width = weights.shape[2:]
        large = F.interpolate(F.pad(x, (k // 2,) * 4), scale_factor=s, mode="nearest")
        total = torch.zeros_like(large[..., :height, :width])
        for i in range(k * k):
            top, left = s * (i // k), s * (i % k)  # one cell is s cells of the enlarged map
            shifted = large[..., top : top + height, left : left + width]
            total = total + shifted * weights[:, i : i + 1]
        return total


@BLOCKS.register()
class DySample(nn.Module):
    """Upsampling by sampling the map at points.

    Offsets of zero, near which training starts, give bilinear upsampling.
    """

    keeps_channels = True
    no_prune = {"offset": "where to sample"}

    def __init__(self, c: int, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.offset = nn.Conv2d(c, 2 * scale**2, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]  # it has one

    @classmethod
    def from_yaml(cls, context: BuildContext, scale: int = 2) -> "DySample":
        """Build the block from the row arguments `[scale]`."""
        return cls(context.c1, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, scale H, scale W)."""
        offset = detach_channels(self.offset(x)) * 0.25
        shift = F.pixel_shuffle(offset, self.scale)  # (N, 2, s H, s W) in cells: x, y
        height, width = shift.shape[2:]
        rows = (torch.arange(height, device=x.device, dtype=x.dtype) + 0.5) / height
        columns = (torch.arange(width, device=x.device, dtype=x.dtype) + 0.5) / width
        at_x = columns + shift[:, 0] / x.shape[3]  # 0..1 over the map
        at_y = rows[:, None] + shift[:, 1] / x.shape[2]
        places = 2 * torch.stack((at_x, at_y), -1) - 1
        return F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=False)
