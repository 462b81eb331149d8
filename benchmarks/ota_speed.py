"""Measure the cost of OTA: `python benchmarks/ota_speed.py`.

1. A training step (forward, loss, backward) with OTA over one with the YOLO loss; aim: at most
   1.15.
2. The batched choice beside a plain one, image by image and target by target. Both must choose the
   same.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchvision.ops import box_convert, box_iou

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.loss_speed import BOXES, CLASSES, IMAGES, SIZE, make_loss, make_model, make_targets  # noqa: E402
from utils.assigners import IOU_COST, TOP_IOUS, Matches, choose_ota, match_anchors  # noqa: E402
from utils.timing import alternate, median_ms, ratio_line  # noqa: E402


def choose_plainly(
    candidates: Matches,
    boxes: Tensor,
    obj: Tensor,
    cls: Tensor,
    targets: Tensor,
    corners: Tensor,
    images: int,
) -> Matches:
    """Choose as `choose_ota` does, in plain steps.

    There is a loop over images, a loop over targets, and a one-hot class cost for every pair.
    """
    kept, owners = [], []
    target_image = targets[:, 0].long()
    candidate_image = target_image[candidates.target]
    for image in range(images):
        wanted = (target_image == image).nonzero().flatten()
        here = (candidate_image == image).nonzero().flatten()
        if not len(wanted) or not len(here):
            continue
        iou = box_iou(corners[wanted], boxes[here])
        y = (cls[here].sigmoid() * obj[here, None].sigmoid()).sqrt()
        shape = (len(wanted), len(here), cls.shape[1])
        classes = one_hot(targets[wanted, 1].long(), cls.shape[1]).float()[:, None].expand(shape)
        logits = (y / (1 - y)).log()[None].expand(shape)
        cost = (
            binary_cross_entropy_with_logits(logits, classes, reduction="none").sum(-1)
            - IOU_COST * (iou + 1e-8).log()
        )
        dynamic_k = iou.topk(min(TOP_IOUS, len(here))).values.sum(1).int().clamp(min=1)
        taken = torch.zeros_like(cost)
        for number, k in enumerate(dynamic_k.tolist()):
            taken[number, cost[number].sort(stable=True).indices[:k]] = 1
        contested = taken.sum(0) > 1
        taken[:, contested] = one_hot(cost[:, contested].argmin(0), len(wanted)).T.float()
        chosen = taken.sum(0).nonzero().flatten()
        kept.append(here[chosen])
        owners.append(wanted[taken[:, chosen].argmax(0)])
    order = torch.cat(kept).sort()
    return candidates.take(order.values)._replace(target=torch.cat(owners)[order.indices])


def random_choice(boxes: int) -> tuple:
    """Return random arguments of `choose_ota`.

    Predictions lie somewhere near their targets, as halfway through a training.
    """
    targets, model = make_targets(boxes), make_model()
    grids = torch.tensor([[SIZE // int(stride)] * 2 for stride in model.head.stride]).float()
    candidates = match_anchors(targets, model.head.anchors, grids, 4.0)
    count = len(candidates.target)
    corners = box_convert(targets[:, 2:6], "cxcywh", "xyxy")
    predicted = targets[candidates.target, 2:6] * (1 + 0.2 * torch.randn(count, 4))
    return (
        candidates,
        box_convert(predicted, "cxcywh", "xyxy"),
        torch.randn(count) - 1,
        torch.randn(count, CLASSES) - 3,
        targets,
        corners,
        IMAGES,
    )


def compare_steps() -> None:
    """Time training steps with both losses and print the ratio of OTA to YOLO."""
    model, targets, images = make_model(), make_targets(), torch.rand(IMAGES, 3, SIZE, SIZE)
    losses = {kind: make_loss(model, kind) for kind in ("yolo", "ota")}
    times = alternate(
        {
            kind: lambda loss=loss: loss(model(images), targets)[0].backward()
            for kind, loss in losses.items()
        }
    )
    medians = [f"{kind} {median_ms(values):.1f} ms" for kind, values in times.items()]
    print(f"  step: {', '.join(medians)}")
    ratios = [a / b for a, b in zip(times["ota"], times["yolo"], strict=True)]
    print("  " + ratio_line("step with ota / step with yolo", ratios))


def compare_choices(boxes: int) -> None:
    """Time both choices, check that they agree, and print the ratio of plain to batched."""
    arguments = random_choice(boxes)
    same = all(
        torch.equal(a, b)
        for a, b in zip(choose_ota(*arguments), choose_plainly(*arguments), strict=True)
    )
    assert same, "the batched and the plain choice differ"
    times = alternate(
        {"plain": lambda: choose_plainly(*arguments), "batched": lambda: choose_ota(*arguments)},
        seconds=5,
    )
    medians = [f"{name} {median_ms(values):.1f} ms" for name, values in times.items()]
    print(f"  {boxes} boxes an image: {', '.join(medians)}")
    ratios = [a / b for a, b in zip(times["plain"], times["batched"], strict=True)]
    print("  " + ratio_line("plain / batched choice", ratios))


def main() -> None:
    """Measure with one thread and with two."""
    print(f"YOLOv5n, {SIZE} px, batch {IMAGES}, {BOXES} boxes an image, {CLASSES} classes, CPU")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"{threads} thread(s)")
        compare_steps()
        for boxes in (BOXES, 5 * BOXES):
            compare_choices(boxes)


if __name__ == "__main__":
    main()
