import pytest
import torch

from utils.boxes import non_max_suppression


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def greedy(
    image, conf_thres, iou_thres, classes=None, agnostic=False, multi_label=False, max_det=300
):
    """Slow and obvious: loops over boxes, classes and kept boxes of one image."""
    found = []
    for x, y, w, h, objectness, *scores in image.tolist():
        confidences = [objectness * score for score in scores]
        best = max(range(len(scores)), key=lambda c: confidences[c])
        for label, confidence in enumerate(confidences):
            if not multi_label and label != best:
                continue
            if (
                objectness > conf_thres
                and confidence > conf_thres
                and (classes is None or label in classes)
            ):
                found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, confidence, float(label)])
    found.sort(key=lambda box: -box[4])
    kept: list[list[float]] = []
    for box in found:
        if all(
            iou(box, other) <= iou_thres or (not agnostic and box[5] != other[5]) for other in kept
        ):
            kept.append(box)
    return torch.tensor(kept[:max_det]).reshape(-1, 6)


def predictions(n: int, nc: int, seed: int, size: float = 60) -> torch.Tensor:
    """Crowded boxes, some with negative corners, as (2, n, 5 + nc)."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(2, n, 4, generator=generator) * size
    boxes[..., 2:] = boxes[..., 2:] / 2 + 4
    return torch.cat((boxes, torch.rand(2, n, 1 + nc, generator=generator)), 2)


@pytest.mark.parametrize("nc", [1, 3, 80])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multi_label": True},
        {"agnostic": True},
        {"classes": [0, 2]},
        {"multi_label": True, "classes": [1]},
        {"max_det": 7},
    ],
    ids=lambda options: "+".join(options) or "default",
)
def test_equals_greedy_reference(nc: int, options: dict):
    batch = predictions(120 if nc < 80 else 25, nc, seed=nc)
    found = non_max_suppression(batch, 0.2, 0.45, **options)
    assert len(found) == 2
    for ours, image in zip(found, batch, strict=True):
        torch.testing.assert_close(ours, greedy(image, 0.2, 0.45, **options), rtol=1e-5, atol=1e-4)


def test_many_boxes_take_the_other_path_of_torchvision_with_the_same_result():
    batch = predictions(800, 2, seed=3, size=200)
    ours = non_max_suppression(batch, 0.05, 0.6, multi_label=True)
    for found, image in zip(ours, batch, strict=True):
        torch.testing.assert_close(
            found, greedy(image, 0.05, 0.6, multi_label=True), rtol=1e-5, atol=1e-4
        )


def test_one_class_scores_objectness_times_class():
    prediction = torch.tensor([[[10.0, 10.0, 4.0, 4.0, 0.8, 0.5]]])
    torch.testing.assert_close(
        non_max_suppression(prediction)[0], torch.tensor([[8.0, 8.0, 12.0, 12.0, 0.4, 0.0]])
    )
    assert (
        len(non_max_suppression(prediction, conf_thres=0.4)[0]) == 0
    )  # above, not at, the threshold
    assert len(non_max_suppression(prediction, multi_label=True, conf_thres=0.3)[0]) == 1


def test_negative_corner_of_one_class_does_not_suppress_another():
    """A class offset of (largest coordinate + 1) without a shift would lay these two boxes onto
    each other.
    """
    big, small = (
        [10.0, 10.0, 10.0, 10.0],
        [-6.0, -6.0, 10.0, 10.0],
    )  # corners 5..15 and -11..-1; -11 + 16 = 5
    prediction = torch.tensor([[[*big, 0.9, 1.0, 0.0], [*small, 0.8, 0.0, 1.0]]])
    assert len(non_max_suppression(prediction)[0]) == 2


def test_images_without_boxes_keep_shape_and_order():
    prediction = torch.zeros(3, 4, 7)
    prediction[1, 2] = torch.tensor([5.0, 5.0, 2.0, 2.0, 0.9, 0.1, 0.9])
    found = non_max_suppression(prediction)
    assert [tuple(f.shape) for f in found] == [(0, 6), (1, 6), (0, 6)]
    assert found[1][0, 5].item() == 1
    assert [tuple(f.shape) for f in non_max_suppression(torch.zeros(2, 0, 6))] == [(0, 6), (0, 6)]


def test_half_precision_input_gives_float_boxes():
    batch = predictions(50, 3, seed=1).half()
    ours, expected = non_max_suppression(batch), non_max_suppression(batch.float())
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours, expected)


def test_a_lonely_weak_box_is_found_behind_a_crowd():
    """The best boxes alone leave too few: the search has to go on."""
    crowd = torch.tensor([[50.0, 50.0, 20.0, 20.0, 0.9, 1.0]]).repeat(100, 1)
    lonely = torch.tensor([[10.0, 10.0, 8.0, 8.0, 0.5, 1.0]])
    found = non_max_suppression(torch.cat((crowd, lonely))[None], max_det=2)[0]
    assert found[:, 4].tolist() == pytest.approx([0.9, 0.5])
