"""The detection loss of YOLOv5 and YOLOv7: box (CIoU), objectness and class terms.

The loss is computed over anchor-matched predictions. `kind="yolo"` trains every candidate of
YOLOv5's matching rule, `kind="ota"` the candidates that YOLOv7's OTA chooses. A head with another
loss brings its own; `build_loss` asks the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_convert

from utils.assigners import Matches, choose_ota, match_anchors
from utils.boxes import bbox_iou
from utils.config import Hyp
from utils.errors import UserError, suggest

KINDS = ("yolo", "ota")
FOCAL_ALPHA = 0.25  # Lin et al. 2017
BALANCE_DECAY = 0.9999  # of autobalance, a step


def build_loss(model: Any, hyp: Hyp, kind: str | None = None) -> nn.Module:
    """Return the loss of a model, made by its head.

    Args:
        model: A model with a `head`; nothing else is read.
        hyp: Scaled gains (`hyp.scaled(...)`).
        kind: `yolo`, `ota`, or None for `hyp.loss`; a head with one loss only ignores it.

    Raises:
        UserError: The head does not know the kind.
    """
    return model.head.build_loss(hyp, kind)


def choose_kind(hyp: Hyp, kind: str | None) -> str:
    """Return the kind that was asked for, `hyp.loss` for None; `UserError` if it is unknown."""
    kind = hyp.loss if kind is None else kind
    if kind not in KINDS:
        raise UserError(
            f"loss: unknown kind '{kind}'{suggest(kind, KINDS)} (known: {', '.join(KINDS)})"
        )
    return kind


class DetectionLoss(nn.Module):
    """Compute the loss of an anchor-based head: `loss(raw_maps, targets) -> (loss, parts)`.

    Half-precision maps are computed in float32. With autobalance, a call with gradients updates
    `balance`.
    """

    anchors: Tensor
    balance: Tensor

    def __init__(self, head: Any, hyp: Hyp, ota: bool = False):
        """Copy `anchors` (L, A, 2) in grid units and read `stride` (L,) in pixels from the head.

        `hyp` are scaled gains; `ota` chooses YOLOv7's assignment.

        Raises:
            UserError: `hyp.autobalance` without a level of stride 16.
        """
        super().__init__()
        self.hyp, self.ota = hyp, ota
        self.register_buffer("anchors", head.anchors.detach().float().clone(), persistent=False)
        self.register_buffer("balance", self.anchors.new_tensor(level_balance(len(self.anchors))))
        self.reference_level = _level_of_stride_16(head.stride) if hyp.autobalance else 0

    def forward(
        self, raw_maps: Sequence[Tensor], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            raw_maps: L tensors (N, A, H, W, 5 + nc), the finest level first.
            targets: (M, 6) image, class, x, y, w, h normalised to 0..1.

        Returns:
            The scalar loss multiplied by the batch size N, and its parts `box`, `obj` and `cls`:
            weighted by their gains, detached, not multiplied.
        """
        grids = targets.new_tensor(
            [[raw.shape[3], raw.shape[2]] for raw in raw_maps]
        )  # (L, 2) columns and rows
        anchors = self.anchors.to(targets.device)
        matches = match_anchors(targets, anchors, grids, self.hyp.anchor_t)
        if self.ota:
            matches = _choose(raw_maps, targets, matches, anchors, grids)

        level, anchor, cell, target = matches
        index = _flat_index(matches, targets, grids, anchors.shape[1])
        rows, objectness = _pick(raw_maps, level, index)
        box_logits, class_logits = rows[:, :4], rows[:, 5:]
        wanted = targets[target, 2:6] * grids[level].repeat(1, 2)
        wanted = torch.cat((wanted[:, :2] - cell, wanted[:, 2:]), 1)
        iou = bbox_iou(decode_boxes(box_logits, anchors[level, anchor]), wanted)
        share = (1 / torch.bincount(level, minlength=len(raw_maps)))[
            level
        ]  # summing with it adds up the means of the levels

        box = self.hyp.box * ((1 - iou) * share).sum()
        obj = self.hyp.obj * self._objectness(objectness, level, index, iou.detach().clamp(min=0))
        cls = (
            self.hyp.cls
            * (self._classification(class_logits, targets[target, 1].long()) * share).sum()
        )
        return (box + obj + cls) * len(raw_maps[0]), {
            "box": box.detach(),
            "obj": obj.detach(),
            "cls": cls.detach(),
        }

    def _objectness(
        self, logits: Sequence[Tensor], level: Tensor, index: Tensor, iou: Tensor
    ) -> Tensor:
        """Compute the objectness loss of all cells: the wanted value is the IoU of the match.

        A cell without a match wants 0. Of several targets in one cell the last match counts: all
        of them write its value, so that the order in which a device writes does not matter.

        Args:
            logits: One flat tensor a level.
            level: (n,) level of each match.
            index: (n,) position of each match in its flat level.
            iou: (n,) IoU of each matched prediction with its target.
        """
        sizes = [len(part) for part in logits]
        cells = (
            index + level.new_tensor([sum(sizes[:number]) for number in range(len(sizes))])[level]
        )
        number = torch.arange(len(cells), device=cells.device)
        last = cells.new_zeros(sum(sizes)).scatter_reduce_(0, cells, number, "amax")
        wanted = iou.new_zeros(sum(sizes)).scatter_(0, cells, iou[last[cells]])

        losses = self._cross_entropy(torch.cat(list(logits)), wanted, self.hyp.obj_pw)
        means = torch.stack([part.mean() for part in losses.split(sizes)])
        balance = self.balance.to(means.device)
        if self.hyp.autobalance and torch.is_grad_enabled():
            moved = BALANCE_DECAY * balance + (1 - BALANCE_DECAY) / means.detach()
            self.balance = moved / moved[self.reference_level]
        return (means * balance).sum()

    def _classification(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Compute the mean class loss of each match, (n, nc) logits to (n,).

        With one class only the loss is 0, as in YOLOv5.
        """
        if logits.shape[1] == 1:
            return logits.new_zeros(len(logits))
        absent = self.hyp.label_smoothing / 2
        wanted = torch.full_like(logits, absent).scatter_(1, classes[:, None], 1 - absent)
        return self._cross_entropy(logits, wanted, self.hyp.cls_pw).mean(1)

    def _cross_entropy(self, logits: Tensor, wanted: Tensor, positive_weight: float) -> Tensor:
        """Compute the binary cross-entropy of each element.

        With `fl_gamma` the value is the focal loss of Lin et al. 2017 for soft targets.
        """
        weight = logits.new_tensor(positive_weight) if positive_weight != 1 else None
        loss = binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
        if not self.hyp.fl_gamma:
            return loss
        p = logits.sigmoid()
        correct = wanted * p + (1 - wanted) * (1 - p)
        alpha = wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)
        return loss * alpha * (1 - correct) ** self.hyp.fl_gamma


@torch.no_grad()
def _choose(
    raw_maps: Sequence[Tensor], targets: Tensor, candidates: Matches, anchors: Tensor, grids: Tensor
) -> Matches:
    """Choose among the candidates by YOLOv7's OTA.

    Boxes are compared as shares of the image: IoU is the same as in pixels.

    Args:
        raw_maps: L tensors (N, A, H, W, 5 + nc).
        targets: (M, 6) image, class, x, y, w, h normalised.
        candidates: n matches of the anchors.
        anchors: (L, A, 2) in grid units.
        grids: (L, 2) columns and rows of each level.
    """
    level, anchor, cell, _ = candidates
    rows, _ = _pick(raw_maps, level, _flat_index(candidates, targets, grids, anchors.shape[1]))
    boxes = decode_boxes(rows[:, :4], anchors[level, anchor])
    boxes[:, :2] += cell
    corners = box_convert(boxes / grids[level].repeat(1, 2), "cxcywh", "xyxy")
    return choose_ota(
        candidates,
        corners,
        rows[:, 4],
        rows[:, 5:],
        targets,
        box_convert(targets[:, 2:6], "cxcywh", "xyxy"),
        len(raw_maps[0]),
    )


def _flat_index(matches: Matches, targets: Tensor, grids: Tensor, anchors_per_level: int) -> Tensor:
    """Return the position (n,) of each match in its raw map flattened to (N * A * H * W, 5 + nc).

    `grids` (L, 2) are columns and rows of each level.
    """
    level, anchor, cell, target = matches
    columns, rows = grids.long()[level].unbind(1)
    image = targets[target, 0].long()
    return ((image * anchors_per_level + anchor) * rows + cell[:, 1]) * columns + cell[:, 0]


def _pick(raw_maps: Sequence[Tensor], level: Tensor, index: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the predictions (n, 5 + nc) at `index`, and the flat objectness logits of each level.

    `level` (n,) is in ascending order.
    """
    counts = torch.bincount(
        level, minlength=len(raw_maps)
    ).tolist()  # cheaper than a copy of all maps into one
    picked = [
        _Pick.apply(raw, part) for raw, part in zip(raw_maps, index.split(counts), strict=True)
    ]
    rows, objectness = zip(*picked, strict=True)
    return at_least_float32(torch.cat(rows)), [at_least_float32(part) for part in objectness]


class _Pick(torch.autograd.Function):
    """Pick rows and objectness of one raw map (N, A, H, W, 5 + nc).

    Plain indexing would give each of the two a gradient as large as the map, then add them: a third
    of the time of the loss.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        ctx.shape = raw.shape
        flat = raw.flatten(0, 3)
        return flat[index], flat[:, 4].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, objectness = gradients
        gradient = rows.new_zeros(ctx.shape)
        flat = gradient.flatten(0, 3)
        flat.index_put_((*ctx.saved_tensors,), rows, accumulate=True)
        flat[:, 4] += objectness
        return gradient, None


def level_balance(levels: int) -> tuple[float, ...]:
    """Return the weight of the objectness loss of each level, the finest first.

    Each level has a quarter of the cells of the finer one, so its mean weighs less.
    """
    return (4.0, 1.0, 0.4) if levels == 3 else (4.0, 1.0, 0.25, 0.06, 0.02)[:levels]


def decode_boxes(logits: Tensor, anchors: Tensor) -> Tensor:
    """Decode box logits (..., 4) to xywh in grid units, relative to the corner of the cell.

    The centre is in -0.5..1.5, the size in 0..4 `anchors` (..., 2).
    """
    centre, size = (logits.sigmoid() * 2).chunk(2, -1)
    return torch.cat((centre - 0.5, size.square() * anchors), -1)


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32; other types stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _level_of_stride_16(stride: Tensor) -> int:
    """Return the level of stride 16, the reference of autobalance; `UserError` if none has it."""
    strides = [int(value) for value in stride]
    if 16 not in strides:
        raise UserError(
            f"hyp: autobalance: needs a level of stride 16, the model has {strides}; set"
            " autobalance: false"
        )
    return strides.index(16)
