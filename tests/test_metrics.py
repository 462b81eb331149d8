import numpy as np
import pytest
import torch

from utils.coco_metric import coco_metric
from utils.metrics import (
    IOU_THRESHOLDS,
    ConfusionMatrix,
    ap_per_class,
    average_precision,
    fitness,
    match_predictions,
)

THRESHOLDS = torch.tensor(IOU_THRESHOLDS)


def column(values: list[int]) -> np.ndarray:
    """The same verdicts at all ten thresholds."""
    return np.repeat(np.array(values, dtype=bool)[:, None], 10, axis=1)


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def matched_slowly(detections, labels, threshold: float) -> list[bool]:
    taken, right = set(), []
    for *box, _, label in detections.tolist():
        overlaps = [iou(box, other) if c == label else 0.0 for c, *other in labels.tolist()]
        best = max(range(len(overlaps)), key=overlaps.__getitem__)
        right.append(overlaps[best] >= threshold and best not in taken)
        if right[-1]:
            taken.add(best)
    return right


def random_scene(seed: int, nc: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels, and detections that are labels shaken, doubled, mislabelled or made up; sorted by
    confidence.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 12))
    corner, size = rng.uniform(0, 150, (n, 2)), rng.uniform(10, 60, (n, 2))
    labels = np.column_stack((rng.integers(0, nc, n), corner, corner + size))
    copies = labels[rng.integers(0, n, 3 * n)]
    boxes = copies[:, 1:] + rng.normal(0, 3, (3 * n, 4)) * rng.integers(0, 3, (3 * n, 1))
    classes = np.where(rng.random(3 * n) < 0.2, rng.integers(0, nc, 3 * n), copies[:, 0])
    detections = np.column_stack((boxes, np.sort(rng.random(3 * n))[::-1], classes))
    return torch.tensor(detections), torch.tensor(labels)


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_the_slow_reference(seed: int):
    detections, labels = random_scene(seed)
    ours = match_predictions(detections, labels, THRESHOLDS)
    assert ours.shape == (len(detections), 10)
    for k, threshold in enumerate(IOU_THRESHOLDS):
        assert ours[:, k].tolist() == matched_slowly(detections, labels, threshold)


def test_a_label_counts_once_and_a_detection_does_not_fall_back():
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [0.0, 2, 0, 12, 10]])
    box = [0.0, 0, 10, 10]  # IoU 1 with the first label, 2/3 with the second
    detections = torch.tensor([[*box, 0.9, 0], [*box, 0.8, 0], [*box, 0.7, 1]])
    assert match_predictions(detections, labels, THRESHOLDS).all(1).tolist() == [True, False, False]
    assert match_predictions(detections, labels, THRESHOLDS).any(1).tolist() == [True, False, False]


def test_a_loose_first_claimant_leaves_the_label_to_a_tighter_one_at_high_thresholds():
    labels = torch.tensor([[0.0, 0, 0, 10, 10]])
    detections = torch.tensor([[0.0, 0, 10, 7.2, 0.9, 0], [0.0, 0, 10, 10, 0.8, 0]])  # IoU .72, 1
    right = match_predictions(detections, labels, THRESHOLDS)
    assert right[0].tolist() == [True] * 5 + [False] * 5
    assert right[1].tolist() == [False] * 5 + [True] * 5


def test_matching_without_labels_or_detections():
    assert (
        match_predictions(torch.zeros(3, 6), torch.zeros(0, 5), THRESHOLDS).tolist()
        == [[False] * 10] * 3
    )
    assert match_predictions(torch.zeros(0, 6), torch.ones(2, 5), THRESHOLDS).shape == (0, 10)


def test_a_point_on_a_label_without_area_matches_nothing_and_spoils_nothing():
    """Two boxes without area have the IoU 0 / 0."""
    labels = torch.tensor([[0.0, 4, 4, 4, 4], [0.0, 10, 10, 30, 30]])
    point = [4.0, 4, 4, 4, 0.9, 0]
    detections = torch.tensor([point, [10.0, 10, 30, 30, 0.8, 0]])
    assert match_predictions(detections, labels, THRESHOLDS).all(1).tolist() == [False, True]
    assert not match_predictions(detections, labels, THRESHOLDS)[0].any()
    confusion = ConfusionMatrix(1)
    confusion.update(detections, labels)
    assert confusion.matrix.tolist() == [[1, 1], [1, 0]]  # a hit, a false one, a missed one


def test_average_precision_by_hand():
    # right, wrong, right; two labels. Envelope: precision 1 up to recall .5, then a straight line
    # to 2/3 at recall 1, then 0. np.interp joins (.5, .5) - the wrong one, lifted to 2/3 by the
    # envelope - so that the line starts at 2/3.
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    x = [i / 100 for i in range(101)]
    y = [1.0] * 50 + [2 / 3] * 50 + [0.0]
    expected = sum((y[i] + y[i + 1]) / 2 * (x[i + 1] - x[i]) for i in range(100))
    assert expected == pytest.approx(
        0.5 * 1 - 0.01 * (1 - 2 / 3) / 2 + 0.5 * 2 / 3 - 0.01 * 2 / 3 / 2
    )
    assert average_precision(recall, precision) == pytest.approx(expected)


def test_perfect_detections_give_yolov5s_995():
    result = ap_per_class(
        column([1, 1, 1]), np.array([0.9, 0.8, 0.7]), np.array([0, 1, 1]), np.array([0, 1, 1])
    )
    np.testing.assert_allclose(result.ap, 0.995)
    assert result.map50 == pytest.approx(0.995) and result.map == pytest.approx(0.995)
    np.testing.assert_allclose(result.p, 1)
    np.testing.assert_allclose(result.r, 1)
    assert result.labels.tolist() == [1, 2]


def test_precision_and_recall_are_read_at_the_best_mean_f1():
    # six labels; the three confident detections are right, the four others wrong: best F1 between
    # .3 and .6
    tp = column([1, 1, 1, 0, 0, 0, 0])
    conf = np.array([0.9, 0.8, 0.6, 0.3, 0.2, 0.2, 0.1])
    result = ap_per_class(tp, conf, np.zeros(7), np.zeros(6))
    assert 0.3 < result.confidence <= 0.6
    assert result.r.item() == pytest.approx(0.5)
    # precision is interpolated between (.3, 3/4) and (.6, 1)
    assert result.p.item() == pytest.approx(np.interp(result.confidence, [0.3, 0.6], [0.75, 1]))
    assert result.f1.item() == pytest.approx(2 * result.p.item() * 0.5 / (result.p.item() + 0.5))


def test_order_of_detections_does_not_matter_and_classes_are_apart():
    rng = np.random.default_rng(0)
    tp, conf, cls = rng.random((60, 10)) > 0.4, rng.random(60), rng.integers(0, 3, 60)
    target = np.repeat([0, 1, 2, 5], 20)
    both, mixed = ap_per_class(tp, conf, cls, target, ["a", "b", "c"]), rng.permutation(60)
    np.testing.assert_allclose(ap_per_class(tp[mixed], conf[mixed], cls[mixed], target).ap, both.ap)
    assert both.ap_class.tolist() == [0, 1, 2, 5] and both.names == ["a", "b", "c", "5"]
    only = ap_per_class(tp[cls == 1], conf[cls == 1], cls[cls == 1], target[target == 1])
    np.testing.assert_allclose(only.ap[0], both.ap[1])
    assert both.ap[3].tolist() == [0.0] * 10  # labels, no detections
    assert both.map50 == pytest.approx(both.ap[:, 0].sum() / 4)


def test_nothing_to_count_gives_zeros():
    empty = np.zeros(0)
    result = ap_per_class(np.zeros((0, 10), bool), empty, empty, empty)
    assert (result.map50, result.map, result.mp, result.mr) == (0, 0, 0, 0)
    assert ap_per_class(column([1]), np.ones(1), np.zeros(1), empty).ap.shape == (0, 10)
    assert ap_per_class(np.zeros((0, 10), bool), empty, empty, np.zeros(4)).map50 == 0


def test_fitness_weighs_the_strict_metric():
    assert fitness(0.5, 0.2) == pytest.approx(0.23)


def test_confusion_matrix_by_hand():
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [1.0, 20, 0, 30, 10], [1.0, 50, 50, 60, 60]])
    detections = torch.tensor(
        [
            [0.0, 0, 10, 9, 0.9, 1],  # on the first label, wrong class, IoU .9
            [0.0, 0, 10, 10, 0.8, 0],  # on the first label, IoU 1: wins though less confident
            [20.0, 0, 30, 10, 0.7, 1],  # right
            [80.0, 0, 90, 10, 0.6, 0],  # background
            [50.0, 50, 60, 60, 0.2, 1],  # right, but below the confidence
            [0.0, 0, 10, 10, 0.9, 7],  # a class that the data do not have
        ]
    )
    confusion = ConfusionMatrix(2)
    confusion.update(detections, labels)
    assert confusion.matrix.tolist() == [[1, 0, 1], [0, 1, 1], [0, 1, 0]]
    confusion.update(detections[:0], labels)
    assert confusion.matrix[2].tolist() == [1, 3, 0]
    confusion.update(detections[:1], labels[:0])  # counted although there is no label
    assert confusion.matrix[:, 2].tolist() == [1, 2, 0]


def coco_and_ours(scenes):
    detections, labels = [s[0].float() for s in scenes], [s[1].float() for s in scenes]
    tp = torch.cat(
        [
            match_predictions(d, t, THRESHOLDS.float())
            for d, t in zip(detections, labels, strict=True)
        ]
    ).numpy()
    stacked, target = torch.cat(detections).numpy(), torch.cat(labels)[:, 0].numpy()
    return coco_metric(detections, labels, nc=3), ap_per_class(
        tp, stacked[:, 4], stacked[:, 5], target
    )


def sampled_as_coco(tp: np.ndarray, conf: np.ndarray, n_labels: int) -> float:
    """AP of one class and threshold: the best precision at each of 101 recalls or beyond, 0 past
    the last recall.
    """
    tp = tp[np.argsort(-conf, kind="stable")]
    recall, precision = tp.cumsum() / n_labels, tp.cumsum() / np.arange(1, len(tp) + 1)
    return float(
        np.mean([max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)])
    )


def test_against_the_coco_tool_on_random_scenes():
    """With COCO's sampling of the curve only the matching rule differs: a detection may fall back
    to another label there.

    Ours is higher than that, since YOLOv5's curve goes from its last point in a straight line to
    (1, 0): .03 at these recalls of about a half.
    """
    scenes = [random_scene(seed) for seed in range(60)]
    coco, ours = coco_and_ours(scenes)
    assert 0.1 < coco["AP"] < 0.9
    assert coco["AP50"] < ours.map50 < coco["AP50"] + 0.035
    assert coco["AP"] < ours.map < coco["AP"] + 0.035

    detections, labels = (
        torch.cat([s[0] for s in scenes]).numpy(),
        torch.cat([s[1] for s in scenes])[:, 0].numpy(),
    )
    tp = torch.cat([match_predictions(d, t, THRESHOLDS) for d, t in scenes]).numpy()
    ap = [
        [
            sampled_as_coco(
                tp[detections[:, 5] == c, k],
                detections[detections[:, 5] == c, 4],
                (labels == c).sum(),
            )
            for k in range(10)
        ]
        for c in range(3)
    ]
    assert np.mean(ap) == pytest.approx(coco["AP"], abs=0.005)
    assert np.mean(ap, axis=0)[0] == pytest.approx(coco["AP50"], abs=0.005)


def test_coco_figures_of_perfect_detections():
    labels = [torch.tensor([[0.0, 0, 0, 20, 20], [2.0, 50, 50, 90, 90]]), torch.zeros(0, 5)]
    perfect = torch.tensor([[0.0, 0, 20, 20, 0.9, 0], [50.0, 50, 90, 90, 0.8, 2]])
    figures = coco_metric([perfect, torch.zeros(0, 6)], labels, nc=3)
    np.testing.assert_allclose([figures[name] for name in ("AP", "AP50", "AR100", "APs", "APm")], 1)
    assert figures["APl"] == -1
    assert coco_metric([perfect[:0]] * 2, labels, nc=3)["AP"] == 0
    assert coco_metric([perfect], [torch.zeros(0, 5)], nc=3)["AP"] == -1


def test_the_coco_figure_is_not_ours_under_another_name():
    """A detection whose best label is taken: COCO gives it the second label, YOLOv5's rule counts
    it wrong.

    Ours: precision 1 up to recall .5, then the line from (.5, .5) to (1, 0), less the half
    trapezoid at the step.
    """
    labels = torch.tensor([[0.0, 0, 0, 100, 100], [0.0, 20, 0, 120, 100]])
    detections = torch.tensor([[0.0, 0, 100, 100, 0.9, 0], [5.0, 0, 105, 100, 0.8, 0]])
    coco, ours = coco_and_ours([(detections, labels)])
    assert coco["AP50"] == pytest.approx(1)
    assert ours.map50 == pytest.approx(0.5 + 0.5 * 0.5 / 2 - 0.01 * 0.5 / 2)


def test_the_best_f1_is_smoothed_over_a_tenth_of_the_axis():
    rng = np.random.default_rng(4)
    tp, conf = rng.random((80, 10)) > 0.5, rng.random(80)
    result = ap_per_class(tp, conf, rng.integers(0, 2, 80), np.repeat([0, 1], 30))
    f1 = result.curves.f1.mean(0).tolist()
    smoothed = [np.mean([f1[min(max(i + k, 0), 999)] for k in range(-50, 51)]) for i in range(1000)]
    assert result.confidence == pytest.approx(int(np.argmax(smoothed)) / 999)
    assert result.confidence != pytest.approx(
        int(np.argmax(f1)) / 999
    )  # else this case would show nothing
