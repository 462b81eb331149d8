"""The losses once more, slow and obvious: one target, one anchor, one cell at a time, straight from
the formulas.

Written apart from `utils/losses.py` and sharing nothing with it, so that the two can be held
against each other.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEFT, UP, RIGHT, DOWN = (-1, 0), (0, -1), (1, 0), (0, 1)


class Match(NamedTuple):
    level: int
    anchor: int
    image: int
    column: int
    row: int
    target: int


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def neighbours(x: float, y: float, columns: int, rows: int) -> list[tuple[int, int]]:
    """Directions in which a centre (grid units) lies nearer to another cell that exists, in the
    order left, up, right, down.
    """
    found = []
    if x % 1 < 0.5 and x > 1:
        found.append(LEFT)
    if y % 1 < 0.5 and y > 1:
        found.append(UP)
    if (columns - x) % 1 < 0.5 and columns - x > 1:
        found.append(RIGHT)
    if (rows - y) % 1 < 0.5 and rows - y > 1:
        found.append(DOWN)
    return found


def candidates(
    maps: list[Tensor], targets: Tensor, anchors: Tensor, anchor_t: float
) -> list[Match]:
    """Levels, then offsets, then anchors, then targets."""
    found = []
    for level, raw in enumerate(maps):
        _, count, rows, columns, _ = raw.shape
        for direction in [(0, 0), LEFT, UP, RIGHT, DOWN]:
            for anchor in range(count):
                for number, target in enumerate(targets):
                    x, y, w, h = (
                        target[2:]
                        * torch.tensor([columns, rows, columns, rows], dtype=target.dtype)
                    ).tolist()
                    if w == 0 or h == 0:
                        continue
                    ratios = (
                        w / float(anchors[level, anchor, 0]),
                        h / float(anchors[level, anchor, 1]),
                    )
                    if max(max(r, 1 / r) for r in ratios) >= anchor_t:
                        continue
                    if direction != (0, 0) and direction not in neighbours(x, y, columns, rows):
                        continue
                    column = min(max(math.trunc(x + direction[0] * 0.5), 0), columns - 1)
                    row = min(max(math.trunc(y + direction[1] * 0.5), 0), rows - 1)
                    found.append(Match(level, anchor, int(target[0]), column, row, number))
    return found


def predicted_box(maps: list[Tensor], anchors: Tensor, match: Match) -> Tensor:
    """x, y, w, h in grid units, from the grid's origin."""
    raw = maps[match.level][match.image, match.anchor, match.row, match.column]
    a = anchors[match.level, match.anchor]
    x = 2 * sigmoid(raw[0]) - 0.5 + match.column
    y = 2 * sigmoid(raw[1]) - 0.5 + match.row
    return torch.stack((x, y, (2 * sigmoid(raw[2])) ** 2 * a[0], (2 * sigmoid(raw[3])) ** 2 * a[1]))


def target_box(maps: list[Tensor], targets: Tensor, match: Match) -> Tensor:
    rows, columns = maps[match.level].shape[2:4]
    return targets[match.target, 2:] * torch.tensor(
        [columns, rows, columns, rows], dtype=targets.dtype
    )


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of two xywh boxes."""
    width = torch.clamp(
        torch.minimum(a[0] + a[2] / 2, b[0] + b[2] / 2)
        - torch.maximum(a[0] - a[2] / 2, b[0] - b[2] / 2),
        min=0,
    )
    height = torch.clamp(
        torch.minimum(a[1] + a[3] / 2, b[1] + b[3] / 2)
        - torch.maximum(a[1] - a[3] / 2, b[1] - b[3] / 2),
        min=0,
    )
    return width * height, a[2] * a[3] + b[2] * b[3] - width * height


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU (Zheng et al. 2020) of two xywh boxes; alpha is a constant."""
    inner, union = overlap(a, b)
    iou = inner / (union + 1e-7)
    width = torch.maximum(a[0] + a[2] / 2, b[0] + b[2] / 2) - torch.minimum(
        a[0] - a[2] / 2, b[0] - b[2] / 2
    )
    height = torch.maximum(a[1] + a[3] / 2, b[1] + b[3] / 2) - torch.minimum(
        a[1] - a[3] / 2, b[1] - b[3] / 2
    )
    distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (torch.atan(b[2] / b[3]) - torch.atan(a[2] / a[3])) ** 2
    alpha = (v / (1 - iou + v + 1e-7)).detach()
    return iou - distance / (width**2 + height**2 + 1e-7) - alpha * v


def bce(x: Tensor, t: float | Tensor, positive_weight: float, gamma: float) -> Tensor:
    """Binary cross-entropy of one logit, focal where gamma > 0 (alpha 0.25)."""
    p = sigmoid(x)
    loss = -(positive_weight * t * torch.log(p) + (1 - t) * torch.log(1 - p))
    if gamma > 0:
        correct = t * p + (1 - t) * (1 - p)
        loss = loss * (0.25 * t + 0.75 * (1 - t)) * (1 - correct) ** gamma
    return loss


def ota(maps: list[Tensor], targets: Tensor, anchors: Tensor, found: list[Match]) -> list[Match]:
    """YOLOv7's choice: image by image, target by target."""
    chosen: dict[int, int] = {}
    for image in range(len(maps[0])):
        here = [number for number, match in enumerate(found) if match.image == image]
        wanted = [number for number, target in enumerate(targets) if int(target[0]) == image]
        if here and wanted:
            chosen |= ota_of_image(maps, targets, anchors, found, here, wanted)
    return [found[number]._replace(target=chosen[number]) for number in sorted(chosen)]


def ota_of_image(maps, targets, anchors, found, here, wanted) -> dict[int, int]:
    """Number of the candidate -> number of its target."""
    cost: dict[tuple[int, int], float] = {}
    takers: dict[int, list[int]] = {}
    for target in wanted:
        ious = {}
        for number in here:
            match = found[number]
            inner, union = overlap(
                predicted_box(maps, anchors, match),
                target_box(maps, targets, match._replace(target=target)),
            )
            ious[number] = float(inner / union)
            raw = maps[match.level][match.image, match.anchor, match.row, match.column]
            entropy = 0.0
            for c, logit in enumerate(raw[5:]):
                y = float(torch.sqrt(sigmoid(logit) * sigmoid(raw[4])))
                entropy -= math.log(y) if c == int(targets[target, 1]) else math.log(1 - y)
            cost[target, number] = entropy + 3 * -math.log(ious[number] + 1e-8)
        k = max(int(sum(sorted(ious.values(), reverse=True)[:10])), 1)
        for number in sorted(here, key=lambda number: cost[target, number])[:k]:
            takers.setdefault(number, []).append(target)
    return {
        number: takes[0]
        if len(takes) == 1
        else min(wanted, key=lambda target: cost[target, number])
        for number, takes in takers.items()
    }


def detection_loss(
    maps, targets, anchors, hyp, use_ota=False, balance=None
) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Loss, parts and the plain mean objectness loss of each level."""
    balance = balance or {3: [4.0, 1.0, 0.4]}.get(len(maps), [4.0, 1.0, 0.25, 0.06, 0.02])
    found = candidates(maps, targets, anchors, hyp.anchor_t)
    if use_ota:
        found = ota([raw.detach() for raw in maps], targets, anchors, found)
    zero = torch.zeros((), dtype=maps[0].dtype)
    box, obj, cls, obj_levels = zero, zero, zero, []
    for level, raw in enumerate(maps):
        wanted_obj = torch.zeros(raw.shape[:4], dtype=raw.dtype)
        boxes, classes = [], []
        for match in (m for m in found if m.level == level):
            value = ciou(predicted_box(maps, anchors, match), target_box(maps, targets, match))
            boxes.append(1 - value)
            wanted_obj[match.image, match.anchor, match.row, match.column] = max(
                float(value.detach()), 0
            )
            logits = raw[match.image, match.anchor, match.row, match.column, 5:]
            for c, logit in enumerate(logits):
                t = (
                    1 - hyp.label_smoothing / 2
                    if c == int(targets[match.target, 1])
                    else hyp.label_smoothing / 2
                )
                classes.append(bce(logit, t, hyp.cls_pw, hyp.fl_gamma))
        if boxes:
            box = box + sum(boxes) / len(boxes)
            if raw.shape[-1] > 6:
                cls = cls + sum(classes) / len(classes)
        obj_levels.append(bce(raw[..., 4], wanted_obj, hyp.obj_pw, hyp.fl_gamma).mean())
        obj = obj + balance[level] * obj_levels[-1]
    parts = {"box": hyp.box * box, "obj": hyp.obj * obj, "cls": hyp.cls * cls}
    return sum(parts.values()) * len(maps[0]), parts, obj_levels
