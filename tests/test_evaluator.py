from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from recipes import session
from utils.evaluator import HEADER, EvalResult, evaluate, log_table, warn_of_settings
from utils.log import LOGGER
from utils.options.train import TrainOptions
from utils.tta import VIEWS, predict_augmented

SIZE = 64


class Batch(NamedTuple):
    images: torch.Tensor
    targets: torch.Tensor
    files: list[str]
    shapes: list


class Replay(nn.Module):
    """A "model" that answers image k, marked by its first pixel's value, with prepared boxes (xyxy,
    confidence, class).
    """

    def __init__(self, answers: list[list[list[float]]], nc: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.BatchNorm2d(1).eval()
        self.stride = torch.tensor([8.0, 16.0])
        self.decoded = torch.zeros(len(answers), 10, 5 + nc)
        for k, boxes in enumerate(answers):
            for row, (x1, y1, x2, y2, conf, cls) in enumerate(boxes):
                self.decoded[k, row, :5] = torch.tensor(
                    [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, conf]
                )
                self.decoded[k, row, 5 + int(cls)] = 1

    def forward(self, x):
        assert not self.training and x.dtype == torch.float32 and x.max() <= 1
        index = (x[:, 0, 0, 0] * 255).round().long()
        return self.decoded[index], [self.weight.expand(len(x), 1, 1, 1, 6)]


def loader_of(labels: list[list[list[float]]], batch_size: int = 2, shapes=None) -> list[Batch]:
    """Batches of empty images; labels are class, xyxy in pixels of the 64 px image."""
    batches = []
    for start in range(0, len(labels), batch_size):
        part = labels[start : start + batch_size]
        images = torch.zeros(len(part), 3, SIZE, SIZE, dtype=torch.uint8)
        rows = []
        for i, boxes in enumerate(part):
            images[i] = start + i
            for cls, x1, y1, x2, y2 in boxes:
                rows.append(
                    [
                        i,
                        cls,
                        (x1 + x2) / 2 / SIZE,
                        (y1 + y2) / 2 / SIZE,
                        (x2 - x1) / SIZE,
                        (y2 - y1) / SIZE,
                    ]
                )
        native = shapes or ((SIZE, SIZE), ((1.0, 1.0), (0.0, 0.0)))
        batches.append(
            Batch(
                images,
                torch.tensor(rows).reshape(-1, 6),
                [f"{start + i}.jpg" for i in range(len(part))],
                [native] * len(part),
            )
        )
    return batches


LABELS = [[[0, 4, 4, 24, 24], [1, 30, 30, 60, 60]], [[1, 10, 10, 40, 50]], []]
PERFECT = [[[*box, 0.9, cls] for cls, *box in boxes] for boxes in LABELS]


def run(answers, labels=LABELS, names=("a", "b"), **options) -> EvalResult:
    options = {"progress": False} | options
    return evaluate(Replay(answers, nc=len(names)), loader_of(labels), names=list(names), **options)


def test_perfect_detections_over_two_batches():
    result = run(PERFECT, coco=True)
    assert result.map50 == pytest.approx(0.995) and result.map == pytest.approx(0.995)
    assert (result.mp, result.mr) == (pytest.approx(1), pytest.approx(1))
    assert (result.seen, result.instances, result.ap_class.tolist()) == (3, 3, [0, 1])
    assert result.coco is not None and result.coco["AP"] == pytest.approx(1)
    assert result.confusion.matrix.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert result.fitness == pytest.approx(0.995)
    assert (
        result.losses == {}
        and set(result.speed) == {"pre", "inference", "nms"}
        and min(result.speed.values()) > 0
    )


def test_a_false_and_a_missed_one_by_hand():
    answers = [
        PERFECT[0],
        [[2, 2, 9, 9, 0.95, 1]],
        [],
    ]  # class 1: first wrong, then right, one missed
    result = run(answers)
    assert result.ap[0, 0] == pytest.approx(0.995)
    # class 1: recall 0, .5 at precision 0, .5. Envelope: from (0, 1) straight... np.interp: (0,1)
    # (0,.5) (.5,.5) (1,0)
    x = np.linspace(0, 1, 101)
    assert result.ap[1, 0] == pytest.approx(
        np.trapezoid(np.interp(x, [0, 0, 0.5, 1], [1, 0.5, 0.5, 0]), x)
    )
    assert result.confusion.matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("answers", "labels"), [([[]] * 3, LABELS), (PERFECT, [[]] * 3), ([[]] * 3, [[]] * 3)]
)
def test_nothing_detected_or_nothing_labelled(answers, labels):
    result = run(answers, labels, coco=True)
    assert (result.map50, result.map, result.fitness, result.seen) == (0, 0, 0, 3)
    log_table(result, per_class=True)


def test_one_class():
    labels = [[[0, *box] for _, *box in boxes] for boxes in LABELS]
    assert run(
        [[[*box, 0.9, 0] for _, *box in boxes] for boxes in labels], labels, names=["a"]
    ).map == pytest.approx(0.995)


def test_single_cls_counts_every_detection_as_class_0():
    labels = [[[0, *box] for _, *box in boxes] for boxes in LABELS]
    seen = []
    assert run(PERFECT, labels).mr == pytest.approx(1 / 3)  # the class of two of three is wrong
    result = run(PERFECT, labels, single_cls=True, on_batch=lambda batch, found: seen.extend(found))
    assert result.map50 == pytest.approx(0.995)
    assert torch.cat(seen)[:, 5].tolist() == [0, 0, 0]


def test_a_box_may_be_of_two_classes():
    labels = [[[0, 4, 4, 24, 24], [1, 4, 4, 24, 24]]]
    model = Replay([[[4, 4, 24, 24, 0.9, 0]]], 2)
    model.decoded[0, 0, 5:] = torch.tensor([1.0, 0.8])
    assert evaluate(
        model, loader_of(labels), names=["a", "b"], progress=False
    ).map50 == pytest.approx(0.995)


def test_more_classes_in_the_model_than_in_the_data():
    answers = [[*PERFECT[0], [5, 5, 20, 20, 0.8, 7]], *PERFECT[1:]]
    result = evaluate(Replay(answers, nc=9), loader_of(LABELS), names=["a", "b"], progress=False)
    assert result.map50 == pytest.approx(0.995) and result.confusion.matrix.shape == (3, 3)


def test_boxes_are_compared_in_the_original_image():
    """A label and a detection reach into the padding by different amounts: in the photo they are
    the same box.
    """
    shapes = ((32, 64), ((1.0, 1.0), (0.0, 16.0)))  # 32 rows of photo between two grey bars of 16
    labels, answers = [[[0, 0, 16, 64, 48]]], [[[0, 0, 64, 64, 0.9, 0]]]
    loader = loader_of(labels, shapes=shapes)
    assert evaluate(Replay(answers, 1), loader, names=["a"], progress=False).map == pytest.approx(
        0.995
    )


def test_modes_and_callback_and_loss():
    model, batches, found = Replay(PERFECT, 2), [], []
    model.train()
    model.frozen.eval()

    def loss(raw, targets):
        assert raw[0].dtype == torch.float32
        return torch.zeros(()), {"box": torch.tensor(float(len(targets))), "obj": torch.tensor(2.0)}

    def on_batch(batch, detections):
        batches.append(batch)
        found.extend(detections)

    result = evaluate(
        model, loader_of(LABELS), names=["a", "b"], loss=loss, on_batch=on_batch, progress=False
    )
    assert result.losses == {"box": 2.0, "obj": 2.0}  # 3 and 0 labels in batches of 2 and 1 images
    assert model.training and not model.frozen.training
    assert len(batches) == 2 and [len(f) for f in found] == [2, 1, 0]
    torch.testing.assert_close(found[1][0], torch.tensor([10.0, 10, 40, 50, 0.9, 1]))


def test_mode_is_restored_after_a_failure():
    model = Replay(PERFECT, 2).train()

    def fail(batch, detections):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate(model, loader_of(LABELS), names=["a", "b"], on_batch=fail, progress=False)
    assert model.training


def test_table(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    log_table(run(PERFECT, names=["a", "a name that is longer than its column"]), per_class=True)
    assert lines[0] == HEADER and lines[0].split() == [
        "Class",
        "Images",
        "Instances",
        "P",
        "R",
        "mAP50",
        "mAP50-95",
    ]
    assert lines[1].split() == ["all", "3", "3", "1", "1", "0.995", "0.995"]
    assert lines[2].split() == ["a", "3", "1", "1", "1", "0.995", "0.995"]
    assert len({len(line) for line in lines}) == 1  # columns stay aligned


class Corner(nn.Module):
    """Finds the brightest pixel: one box of 8 x 4 px around it in each of two levels (3 + 1 rows,
    padded with zeros).
    """

    stride = torch.tensor([8.0, 16.0])

    def forward(self, x):
        assert x.shape[2] % 16 == 0 and x.shape[3] % 16 == 0
        flat = x[:, 0].flatten(1).argmax(1)
        row, column = flat // x.shape[3], flat % x.shape[3]
        box = torch.stack(
            (column + 0.5, row + 0.5, torch.full_like(row, 8.0), torch.full_like(row, 4.0)), 1
        ).float()
        fine = torch.zeros(len(x), 3, 6)
        coarse = torch.zeros(len(x), 1, 6)
        fine[:, 0, :4], coarse[:, 0, :4] = box, box
        fine[:, 0, 4:], coarse[:, 0, 4:] = 0.5, 0.6
        return torch.cat((fine, coarse), 1), [
            torch.zeros(len(x), 3, 1, 1, 6),
            torch.zeros(len(x), 1, 1, 1, 6),
        ]


def test_augmented_views_are_mapped_back():
    images = torch.zeros(1, 3, 64, 96)
    images[0, :, 30:34, 70:74] = 1
    found = predict_augmented(Corner(), images)
    assert found.shape == (
        1,
        3 + 4 + 1,
        6,
    )  # without the coarse level of the large view, the fine one of the small
    boxes = found[0][found[0, :, 4] > 0]
    assert boxes[:, 4].tolist() == pytest.approx([0.5, 0.5, 0.6, 0.6])
    assert (boxes[:, 0] - 72).abs().max() < 3 and (boxes[:, 1] - 32).abs().max() < 3
    factors = torch.tensor([VIEWS[0][0], VIEWS[1][0], VIEWS[1][0], VIEWS[2][0]])
    torch.testing.assert_close(boxes[:, 2], 8 / factors)
    torch.testing.assert_close(boxes[:, 3], 4 / factors)


def test_augment_option_reaches_the_metrics():
    # the replayed boxes come back once as they are, twice scaled (and mirrored), which is wrong
    assert run(PERFECT, augment=True).p.tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    return said


def test_settings_that_bend_the_metrics_are_named(warnings):
    labels = [np.zeros((n, 5), np.float32) for n in (400, 100, 0)]
    warn_of_settings(labels, max_det=400, conf_thres=0.001)
    assert warnings == []
    warn_of_settings(labels, max_det=300, conf_thres=0.5)
    assert warnings[0] == (
        "--max-det 300: 1 images have more objects, up to 400; recall cannot exceed 0.800; try"
        " --max-det 800"
    )
    assert warnings[1].startswith("--conf-thres 0.5: above 0.001") and len(warnings) == 2
    warn_of_settings([], max_det=300)
    assert len(warnings) == 2


def test_training_validates_with_its_own_max_det_and_says_where_it_is_too_low(
    monkeypatch, warnings
):
    given = {}
    monkeypatch.setattr(session, "evaluate", lambda *_, **settings: given.update(settings))
    monkeypatch.setattr(session, "log_table", lambda result: None)
    loader = SimpleNamespace(dataset=SimpleNamespace(labels=[np.zeros((8, 5), np.float32)]))
    run = SimpleNamespace(model=SimpleNamespace(names=["a"]), opt=TrainOptions(max_det=6))
    fake = SimpleNamespace(val_loader=loader, run=run)
    session._validation(fake, nn.Identity())(nn.Identity())
    assert given["max_det"] == 6
    assert "recall cannot exceed 0.750" in warnings[0]


def test_outputs_that_are_not_finite_are_counted_and_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(LOGGER, "propagate", True)
    model = Replay([[[10, 10, 30, 30, 0.9, 0]]] * 3, nc=1)
    labels = [[[0, 10, 10, 30, 30]]] * 3
    assert evaluate(model, loader_of(labels), names=["a"], progress=False).map50 > 0.9
    assert "not finite" not in caplog.text
    model.decoded[1] = float("nan")
    model.decoded[2, 3, 0] = float("inf")
    evaluate(model, loader_of(labels), names=["a"], progress=False)
    assert "in 2 of 3 images the model's outputs are not finite" in caplog.text
