"""Which predictions answer for which targets: YOLOv5's anchor matching, and YOLOv7's OTA choice
among its candidates.

Everything is batched tensor code without gradient: no loop over images, anchors or targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# The cells a target may train, as what is taken off its centre (x, y): its own, then the left,
# upper, right and lower neighbour.
OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))
TOP_IOUS = 10  # a target takes as many predictions as the sum of its ten best IoUs (YOLOX's SimOTA)
IOU_COST = 3.0  # weight of -log IoU beside the class cost


class Matches(NamedTuple):
    """n pairs of prediction and target, sorted by level, then in the order in which YOLOv5 writes
    them.
    """

    level: Tensor  # (n,) long
    anchor: Tensor  # (n,) long, anchor of that level
    cell: Tensor  # (n, 2) long, column and row of the grid
    target: Tensor  # (n,) long, row of `targets`

    def take(self, index: Tensor) -> "Matches":
        """The matches at `index`, in its order."""
        return Matches(*(field[index] for field in self))


@torch.no_grad()
def match_anchors(targets: Tensor, anchors: Tensor, grids: Tensor, anchor_t: float) -> Matches:
    """YOLOv5's rule: every anchor of similar size, in the target's cell and in its nearest
    neighbours.

    An anchor fits where neither side differs by a factor of `anchor_t` or more. A neighbour cell
    takes part where the centre lies in the half of its cell next to it, so that a target has up to
    three cells. Order: level, offset, anchor, target.

    targets: (M, 6) image, class, x, y, w, h normalised; anchors: (L, A, 2) in grid units; grids:
    (L, 2) columns and rows, float.
    """
    centre, size = (targets[:, 2:6] * grids.repeat(1, 2)[:, None]).chunk(
        2, -1
    )  # (L, M, 2), grid units
    ratio = size[:, None] / anchors[:, :, None]
    fits = torch.max(ratio, 1 / ratio).amax(-1) < anchor_t  # (L, A, M)

    # the same test from the left and top edge, and from the right and bottom edge; there is no
    # neighbour beyond an edge
    near, far = (
        (distance % 1 < 0.5) & (distance > 1) for distance in (centre, grids[:, None] - centre)
    )
    reaches = torch.cat((torch.ones_like(near[..., :1]), near, far), -1).movedim(-1, 1)  # (L, 5, M)

    level, step, anchor, target = (reaches[:, :, None] & fits[:, None]).nonzero().unbind(1)
    cell = (centre[level, target] - targets.new_tensor(OFFSETS)[step]).long().clamp(min=0)
    return Matches(level, anchor, torch.min(cell, (grids.long() - 1)[level]), target)


@torch.no_grad()
def choose_ota(
    candidates: Matches,
    boxes: Tensor,
    obj: Tensor,
    cls: Tensor,
    targets: Tensor,
    corners: Tensor,
    images: int,
) -> Matches:
    """YOLOv7's OTA (after Ge et al. 2021, YOLOX): each target takes the k predictions that cost it
    least.

    cost = binary cross-entropy of sqrt(p_obj p_cls) against the one-hot class, summed over classes,
    + 3 (-log IoU); k = the sum of the ten best IoUs, rounded down, at least 1. A prediction that
    several targets take goes to the cheapest target of its image. Of equal costs the earlier
    candidate is taken.

    candidates: n matches; of their predictions: boxes (n, 4) xyxy, obj (n,) and cls (n, nc) logits.
    targets: (M, 6); corners: (M, 4) their xyxy in the unit of `boxes`; images: the batch size.
    """
    if not len(candidates.target):
        return candidates
    target_image = targets[:, 0].long()
    image = target_image[candidates.target]
    _, target_table = _padded_table(target_image, images)
    column, table = _padded_table(image, images)
    real = (target_table >= 0)[:, :, None] & (table >= 0)[
        :, None
    ]  # (images, G, P): the rest is padding

    iou = pairwise_iou(corners[target_table], boxes[table]).masked_fill(~real, 0)
    cost = (
        _class_cost(obj, cls, targets[:, 1].long()[target_table], table)
        - IOU_COST * (iou + 1e-8).log()
    )
    cost.masked_fill_(~real, torch.inf)

    most = min(TOP_IOUS, iou.shape[2])
    dynamic_k = iou.topk(most).values.sum(-1, keepdim=True).long().clamp(1, most)
    # cost of the last prediction that is taken; a stable sort is slower
    limit = cost.topk(most, largest=False).values.gather(2, dynamic_k - 1)
    below, level_with = cost < limit, cost == limit
    ties_left = dynamic_k - below.sum(-1, keepdim=True)
    matching_matrix = (
        below | level_with & (level_with.cumsum(-1, dtype=torch.int32) <= ties_left)
    ) & real

    matched_targets = matching_matrix.sum(1)
    owner = torch.where(
        matched_targets > 1, cost.argmin(1), matching_matrix.byte().argmax(1)
    )  # (images, P), column of the target
    keep = matched_targets[image, column].nonzero().squeeze(1)
    owners = target_table[image[keep], owner[image, column][keep]]
    return candidates.take(keep)._replace(target=owners)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Plain IoU of every box with every other, batched: xyxy (..., G, 4) and (..., P, 4) to (...,
    G, P).
    """
    ax1, ay1, ax2, ay2 = a[..., :, None, :].unbind(-1)
    bx1, by1, bx2, by2 = b[..., None, :, :].unbind(-1)
    width = (torch.min(ax2, bx2) - torch.max(ax1, bx1)).clamp_(min=0)
    height = (torch.min(ay2, by2) - torch.max(ay1, by1)).clamp_(min=0)
    overlap = width.mul_(height)
    return overlap / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap)


def _class_cost(obj: Tensor, cls: Tensor, wanted: Tensor, table: Tensor) -> Tensor:
    """BCE of sqrt(p_obj p_cls) against the class a target wants; wanted (images, G), table (images,
    P) -> (images, G, P).

    With y the root, the sum over classes is that of -log(1 - y), the same for every target, minus
    the logit of y of the wanted class alone. y stays off 0 and 1, where a cost would be infinite
    and the others could not be compared.
    """
    y = (
        (obj.sigmoid()[:, None] * cls.sigmoid())
        .sqrt_()
        .clamp_(1e-30, 1 - torch.finfo(cls.dtype).eps / 2)
    )
    background = -(1 - y).log().sum(1)
    return background[table][:, None] - y[table[:, None], wanted[:, :, None]].logit()


def _padded_table(image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Arrange the rows of several images in one padded table.

    Args:
        image: (n,) image number of each row.
        images: Number of images.

    Returns:
        The column (n,) of each row in the table, and the table (images, most) of row numbers, with
        -1 in empty columns. The order within an image stays.
    """
    counts = torch.bincount(image, minlength=images)
    order = image.sort(stable=True).indices
    first = (counts.cumsum(0) - counts)[image[order]]
    column = torch.empty_like(image)
    column[order] = torch.arange(len(image), device=image.device) - first
    table = image.new_full((images, int(counts.max())), -1)
    table[image, column] = torch.arange(len(image), device=image.device)
    return column, table
