import math

import pytest
import torch
from torchvision.ops import box_convert, complete_box_iou_loss, generalized_box_iou_loss

from utils.boxes import bbox_iou, clip_boxes, scale_boxes


def random_xywh(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 4, generator=generator, dtype=torch.float64) * 8 + 1


def ciou_by_hand(a: list[float], b: list[float]) -> float:
    """The paper's formula for one pair of xywh boxes, written with plain numbers."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    width = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    height = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    iou = width * height / (aw * ah + bw * bh - width * height)
    box_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    box_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    distance = ((ax - bx) ** 2 + (ay - by) ** 2) / (box_w**2 + box_h**2)
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    return iou - distance - v * v / (v - iou + 1)


def test_iou_of_a_quarter_overlap():
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    assert bbox_iou(a, b, xywh=False, kind="iou").item() == pytest.approx(1 / 7)
    assert bbox_iou(a, b, xywh=False, kind="giou").item() == pytest.approx(1 / 7 - 2 / 9)
    assert bbox_iou(a, b, xywh=False, kind="ciou").item() == pytest.approx(1 / 7 - 2 / 18)


@pytest.mark.parametrize("seed", range(3))
def test_ciou_equals_the_formula_by_hand(seed: int):
    a, b = random_xywh(50, seed), random_xywh(50, seed + 10)
    expected = [ciou_by_hand(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(
        bbox_iou(a, b), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    # float32, as the loss computes it
    torch.testing.assert_close(
        bbox_iou(a.float(), b.float()).double(), bbox_iou(a, b), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "peer"), [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)]
)
def test_values_and_gradients_equal_torchvision(kind, peer):
    a, b = random_xywh(40, 5).requires_grad_(), random_xywh(40, 6).requires_grad_()
    (1 - bbox_iou(a, b, kind=kind)).sum().backward()
    ours = (a.grad.clone(), b.grad.clone())
    a.grad = b.grad = None
    loss = peer(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy"))
    torch.testing.assert_close(1 - bbox_iou(a, b, kind=kind), loss, rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    torch.testing.assert_close(ours, (a.grad, b.grad), rtol=1e-4, atol=1e-6)


def test_equal_and_degenerate_boxes_stay_finite():
    a = torch.tensor([[5.0, 5.0, 2.0, 3.0], [1.0, 1.0, 1e-6, 4.0]], requires_grad=True)
    overlap = bbox_iou(a, a.detach().clone())
    assert overlap[0].item() == pytest.approx(1, abs=1e-6)
    overlap.sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()
    flat = torch.tensor(
        [[5.0, 5.0, 0.0, 0.0], [5.0, 5.0, 1e-30, 1e-30]], requires_grad=True
    )  # what underflow makes of a size
    bbox_iou(flat, torch.tensor([[5.0, 5.0, 2.0, 3.0]] * 2)).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_rounding_of_equal_boxes_in_float32_does_not_divide_zero_by_zero():
    boxes = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0)) * 3 + 0.1
    assert (bbox_iou(boxes, boxes, kind="iou") > 1).any()  # what made the aspect term 0 / 0
    boxes.requires_grad_()
    overlap = bbox_iou(boxes, boxes.detach())
    overlap.sum().backward()
    assert (
        (overlap - 1).abs().max() < 1e-4 and boxes.grad is not None and boxes.grad.isfinite().all()
    )


def test_letterbox_is_undone_and_clipped():
    # a 200 x 100 (w x h) photo in a 128 x 128 square: factor .64, 32 px of padding above and below
    shapes = ((100, 200), ((0.64, 0.64), (0.0, 32.0)))
    inside, outside = (
        torch.tensor([[0.0, 32.0, 64.0, 64.0]]),
        torch.tensor([[-10.0, 0.0, 128.0, 128.0]]),
    )
    torch.testing.assert_close(scale_boxes(inside, shapes), torch.tensor([[0.0, 0.0, 100.0, 50.0]]))
    torch.testing.assert_close(
        scale_boxes(outside, shapes), torch.tensor([[0.0, 0.0, 200.0, 100.0]])
    )
    assert inside.tolist() == [[0.0, 32.0, 64.0, 64.0]]  # the input is not written to


def test_letterbox_factors_are_not_swapped():
    shapes = ((10, 40), ((2.0, 0.5), (3.0, 7.0)))
    boxes = torch.tensor([[3.0, 7.0, 13.0, 17.0]])
    torch.testing.assert_close(scale_boxes(boxes, shapes), torch.tensor([[0.0, 0.0, 20.0, 5.0]]))


def test_clip_boxes():
    boxes = torch.tensor([[-1.0, -2.0, 50.0, 60.0]])
    assert clip_boxes(boxes, height=40, width=30).tolist() == [[0.0, 0.0, 30.0, 40.0]]
