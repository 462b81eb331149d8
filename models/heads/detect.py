"""Anchor-based detection heads of YOLOv5 (`Detect`) and YOLOv7 (`IDetect`).

Papers: Redmon, "YOLO9000", 2017 (anchors); Wang et al., "You Only Learn One Representation", 2021
(implicit vectors) and "YOLOv7", 2022.

Structure: a 1x1 convolution a level. IDetect adds a learned vector before the convolution and
multiplies by another one after it; deployed, it is a Detect.
Shapes: [(N, Ci, Hi, Wi)] -> raw maps [(N, na, Hi, Wi, 5 + nc)]; in eval mode `Detections` with
boxes (N, all cells and anchors, 5 + nc) and the raw maps.
What differs: boxes are decoded as in YOLOv5 (see `decode_level`), not as in YOLO9000.

    - [[17, 20, 23], 1, Detect, [nc, anchors]]
    - [[74, 75, 76], 1, IDetect, [nc, anchors]]

Pruning: the predictions stay whole; their inputs and the added vector are cut together.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.heads.base import Head
from models.registry import BLOCKS, BuildContext
from utils.config import Hyp
from utils.errors import UserError
from utils.log import LOGGER
from utils.losses import DetectionLoss, choose_kind


@BLOCKS.register()
class Detect(Head):
    """Predict na boxes (x, y, w, h, objectness, classes) a cell by a 1x1 convolution a level.

    `anchors` (nl, na, 2) are in grid units of their level, `stride` (nl,) in pixels a cell.
    """

    anchors: Tensor

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[float, ...],
        nc: int,
        anchors: Any,
        predictor: Callable[[int, int], nn.Module] | None = None,
    ):
        """Build the predictions of every level.

        Args:
            channels: Channels of each input, the finest level first.
            strides: Pixels a cell of each input.
            nc: Number of classes.
            anchors: A list a level of w, h, w, h ... in pixels, or their number a level
                (autoanchor then finds better ones).
            predictor: (channels of a level, na) -> module that makes the raw map of the level; a
                1x1 convolution by default.

        Raises:
            UserError: The number of levels of anchors is not the number of inputs.
        """
        super().__init__(nc, strides)
        if isinstance(anchors, int):
            anchors = [_generic_anchors(stride, anchors) for stride in strides]
        if len(anchors) != len(channels):
            raise UserError(
                f"{len(anchors)} levels of anchors for {len(channels)} inputs; give one list of"
                " anchors an input"
            )
        self.no = nc + 5
        self.na = len(anchors[0]) // 2
        self.register_buffer("anchors", torch.zeros(self.nl, self.na, 2))
        make = predictor or (lambda c, na: nn.Conv2d(c, self.no * na, 1))
        self.m = nn.ModuleList(make(c, self.na) for c in channels)
        self.set_anchors(
            _ordered(
                torch.tensor(anchors, dtype=torch.float32).view(self.nl, self.na, 2), self.stride
            )
        )
        self.initialise_bias()

    @classmethod
    def from_yaml(cls, context: BuildContext, nc: int, anchors: Any) -> "Detect":
        """Build from the row arguments `[nc, anchors]`: the names, or values."""
        return cls(context.in_channels, context.in_strides, nc, anchors)

    def set_anchors(self, pixels: Tensor) -> None:
        """Replace the anchors by (nl, na, 2) in pixels, the smallest level first."""
        with torch.no_grad():
            self.anchors.copy_(pixels.to(self.anchors) / self.stride.view(-1, 1, 1))

    @property
    def anchors_px(self) -> Tensor:
        """Anchors (nl, na, 2) in pixels."""
        return self.anchors * self.stride.view(-1, 1, 1)

    def initialise_bias(self, class_counts: Tensor | None = None) -> None:
        """Start from 8 objects in a 640 px image, classes as counted or all alike.

        Source: RetinaNet, section 3.3. `class_counts` (nc,) counts the labels of each class.
        """
        for conv, stride in zip(self.m, self.stride.tolist(), strict=True):
            bias = cast(Tensor, cast(nn.Conv2d, conv).bias).detach().view(self.na, self.no)
            bias[:, 4] += objectness_logit(stride)
            bias[:, 5:] += class_logits(self.nc, class_counts)

    def refresh(self) -> None:
        """See Head."""
        self.set_anchors(self.anchors_px)

    def build_loss(self, hyp: Hyp, kind: str | None = None) -> DetectionLoss:
        """Return the loss of YOLOv5 (`yolo`) or YOLOv7 (`ota`); see Head and `DetectionLoss`.

        Raises:
            UserError: `kind` is unknown.
        """
        return DetectionLoss(self, hyp, ota=choose_kind(hyp, kind) == "ota")

    def raw(self, x: Tensor, level: int) -> Tensor:
        """Return the prediction of a level before reshaping: (N, C, H, W) -> (N, na x no, H, W)."""
        return self.m[level](x)

    def predict(self, x: list[Tensor]) -> list[Tensor]:
        """Map features [(N, C, H, W)] to raw maps [(N, na, H, W, no)]."""
        maps = []
        for level, features in enumerate(x):
            y = self.raw(features, level)
            n, _, height, width = y.shape
            maps.append(
                y.view(n, self.na, self.no, height, width).permute(0, 1, 3, 4, 2).contiguous()
            )
        return maps

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps [(N, na, H, W, no)] to (N, all cells and anchors, no); see Head."""
        return torch.cat([self.decode_level(y, level) for level, y in enumerate(maps)], 1)

    def decode_level(self, y: Tensor, level: int) -> Tensor:
        """Decode the raw map (N, na, H, W, no) of a level to (N, na x H x W, no).

        With s the sigmoid: centre (2 s - 0.5 + cell) stride, size (2 s)^2 anchor, both in pixels;
        scores s.
        """
        n, na, height, width, no = y.shape
        rows = torch.arange(height, device=y.device, dtype=y.dtype)
        columns = torch.arange(width, device=y.device, dtype=y.dtype)
        cell = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2): x, y
        xy, wh, scores = y.sigmoid().split((2, 2, no - 4), -1)
        xy = (xy * 2 - 0.5 + cell) * self.stride[level]
        wh = (wh * 2) ** 2 * self.anchors_px[level].view(1, na, 1, 1, 2)
        return torch.cat((xy, wh, scores), -1).view(n, -1, no)


def objectness_logit(stride: float) -> float:
    """Return the logit by which 8 of all cells of a 640 px image are objects."""
    return math.log(8 / (640 / stride) ** 2)


def class_logits(nc: int, class_counts: Tensor | None) -> Tensor | float:
    """Return the logits (nc,) of the counted frequencies, or one logit for all classes alike."""
    if class_counts is None:
        return math.log(0.6 / (nc - 0.99999))
    return torch.log(class_counts / class_counts.sum())


class ImplicitA(nn.Module):
    """Add a learned vector (1, C, 1, 1) (YOLOR, Wang 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0.0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.implicit + x


class ImplicitM(nn.Module):
    """Multiply by a learned vector (1, C, 1, 1) (YOLOR, Wang 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(1.0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.implicit * x


@BLOCKS.register()
class IDetect(Detect):
    """Predict as `Detect`, with a vector added before and one multiplied after (YOLOv7)."""

    anchor_grid: Tensor

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[float, ...], nc: int, anchors: Any
    ):
        super().__init__(channels, strides, nc, anchors)
        # official YOLOv7 files store the anchors in pixels once more; nothing here reads the copy
        self.register_buffer(
            "anchor_grid", self.anchors_px.view(self.nl, 1, self.na, 1, 1, 2).clone()
        )
        self.ia = nn.ModuleList(ImplicitA(c) for c in channels)
        self.im = nn.ModuleList(ImplicitM(self.no * self.na) for _ in channels)

    def set_anchors(self, pixels: Tensor) -> None:
        """See Detect."""
        super().set_anchors(pixels)
        if hasattr(self, "anchor_grid"):  # not yet while Detect's part is built
            self.anchor_grid.copy_(self.anchors_px.view_as(self.anchor_grid))

    def raw(self, x: Tensor, level: int) -> Tensor:
        """See Detect."""
        return self.im[level](self.m[level](self.ia[level](x)))

    def fuse(self) -> Detect:
        """Return the equal plain Detect: b' = (b + W a) m, W' = W m."""
        plain = Detect.__new__(Detect)
        nn.Module.__init__(plain)
        plain.nc, plain.no, plain.nl, plain.na = self.nc, self.no, self.nl, self.na
        plain.register_buffer("stride", self.stride, persistent=False)
        plain.register_buffer("anchors", self.anchors)
        plain.m = nn.ModuleList(
            fold_implicit(cast(nn.Conv2d, conv), cast(ImplicitA, a), cast(ImplicitM, m))
            for conv, a, m in zip(self.m, self.ia, self.im, strict=True)
        )
        return plain.train(self.training)


def fold_implicit(conv: nn.Conv2d, add: ImplicitA, multiply: ImplicitM) -> nn.Conv2d:
    """Return a new convolution that equals `multiply(conv(add(x)))`."""
    weight, bias = conv.weight.detach(), cast(Tensor, conv.bias).detach()
    a, m = add.implicit.detach().flatten(), multiply.implicit.detach().flatten()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(weight * m.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter((bias + weight.flatten(1) @ a) * m)
    return folded


def _generic_anchors(stride: float, number: int) -> list[float]:
    """Return squares of 2 to nearly 4 cells, for a YAML that gives only the number of anchors."""
    sides = [2 * stride * 2 ** (i / number) for i in range(number)]
    return [side for s in sides for side in (s, s)]


def _ordered(anchors: Tensor, stride: Tensor) -> Tensor:
    """Return anchors (nl, na, 2) with small ones at small strides.

    Anchors in the opposite order are turned round, with a warning.
    """
    area = anchors.prod(-1).mean(-1)
    if len(area) > 1 and (area[-1] - area[0]) * (stride[-1] - stride[0]) < 0:
        LOGGER.warning(
            "anchors: their order is against the strides' (large objects need large strides);"
            " turned round"
        )
        return anchors.flip(0)
    return anchors
