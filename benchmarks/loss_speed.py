"""Measure the share of the detection loss in a training step: `python benchmarks/loss_speed.py`.

The loss (values and gradients with respect to the raw maps) and the bare network's forward and
backward take turns.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import build_model  # noqa: E402
from utils.config import Hyp  # noqa: E402
from utils.losses import DetectionLoss, build_loss  # noqa: E402
from utils.timing import alternate, median_ms, ratio_line  # noqa: E402

IMAGES, SIZE, CLASSES, BOXES = 16, 160, 80, 10


def make_model() -> Any:
    """Return YOLOv5n in training mode, with seeded weights."""
    torch.manual_seed(0)
    return build_model("yolov5n", nc=CLASSES).train()


def make_targets(boxes: int = BOXES) -> Tensor:
    """Return (IMAGES * boxes, 6) = image, class, x, y, w, h: random targets, seeded.

    Classes are uniform, sides 5 to 45 % of the image, small sides more often.
    """
    torch.manual_seed(0)
    targets = torch.rand(IMAGES * boxes, 6)
    targets[:, 0] = torch.arange(IMAGES).repeat_interleave(boxes)
    targets[:, 1] = (targets[:, 1] * CLASSES).floor()
    targets[:, 4:] = 0.05 + 0.4 * targets[:, 4:].square()
    return targets


def make_loss(model: Any, kind: str) -> DetectionLoss:
    """Return the loss of a kind (`yolo` or `ota`) with YOLOv5's gains."""
    loss = build_loss(model, Hyp().scaled(len(model.head.anchors), CLASSES, SIZE), kind)
    assert isinstance(loss, DetectionLoss)
    return loss


def main() -> None:
    """Measure with one thread and with two."""
    model, targets, images = make_model(), make_targets(), torch.rand(IMAGES, 3, SIZE, SIZE)
    maps = [raw.detach().requires_grad_() for raw in model(images)]
    ones = [torch.ones_like(raw) for raw in maps]

    def network() -> None:
        torch.autograd.backward(model(images), ones)

    def loss_alone(kind: str) -> Callable[[], object]:
        loss = make_loss(model, kind)
        return lambda: torch.autograd.grad(loss(maps, targets)[0], maps)

    print(f"YOLOv5n, {SIZE} px, batch {IMAGES}, {BOXES} boxes an image, {CLASSES} classes, CPU")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = alternate(
            {"network": network, "yolo": loss_alone("yolo"), "ota": loss_alone("ota")}
        )
        medians = [f"{name} {median_ms(values):.1f} ms" for name, values in times.items()]
        print(f"{threads} thread(s): {', '.join(medians)}")
        for kind in ("yolo", "ota"):
            ratios = [a / b for a, b in zip(times[kind], times["network"], strict=True)]
            print("  " + ratio_line(f"{kind} loss / network", ratios))


if __name__ == "__main__":
    main()
