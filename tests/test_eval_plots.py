from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_evaluator import LABELS, PERFECT, Replay, loader_of
from utils.evaluator import evaluate
from utils.plots.drawing import TILE, class_colour, label_boxes, save_labels, save_mosaic
from utils.plots.evaluation import batch_pictures, plot_evaluation

CURVES = ("PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("nc", "answers", "labels"),
    [(2, PERFECT, LABELS), (2, [[]] * 3, [[]] * 3), (60, PERFECT, LABELS)],
)
def test_every_picture_is_written_also_with_nothing_to_show(tmp_path, nc, answers, labels):
    names = [f"class {i}" for i in range(nc)]
    result = evaluate(Replay(answers, nc), loader_of(labels), names=names, progress=False)
    plot_evaluation(result, names, tmp_path)
    for name in CURVES:
        picture = pixels(tmp_path / name)
        assert min(picture.shape[:2]) > 500 and picture.std() > 5
        assert (picture[[0, -1]] == 255).all() and (
            picture[:, [0, -1]] == 255
        ).all()  # nothing is cut off at the border


def test_confusion_picture_depends_on_the_counts(tmp_path):
    for name, answers in (("good", PERFECT), ("none", [[]] * 3)):
        (tmp_path / name).mkdir()
        result = evaluate(Replay(answers, 2), loader_of(LABELS), names=["a", "b"], progress=False)
        plot_evaluation(result, ["a", "b"], tmp_path / name)
    good, none = (pixels(tmp_path / name / "confusion_matrix.png") for name in ("good", "none"))
    middle = [shape // 3 for shape in good.shape[:2]]
    assert good[:, :, 0].min() < 60 and abs(good - none)[: middle[0], : middle[1]].max() > 100


def test_mosaic_enlarges_small_images_and_draws_boxes_in_their_colour(tmp_path):
    images = torch.full((3, 3, 64, 64), 200, dtype=torch.uint8)
    boxes = [
        torch.tensor([[16.0, 16.0, 48.0, 48.0, 0.9, 1.0]]),
        torch.zeros(0, 6),
        torch.tensor([[0.0, 0.0, 64.0, 64.0, 0.9, 99.0]]),
    ]
    save_mosaic(images, boxes, ["a", "b"], tmp_path / "m.png", captions=["one.jpg"] * 3)
    picture = pixels(tmp_path / "m.png")
    assert picture.shape == (2 * TILE, 2 * TILE, 3)
    edge = 48 * TILE // 64  # right edge of the first box, halfway down
    assert (abs(picture[TILE // 2, edge - 3 : edge + 3] - class_colour(1)).sum(1) < 10).any()
    assert (picture[TILE // 2, TILE // 2] == 200).all()
    assert (picture[TILE + TILE // 2, TILE + TILE // 2] == 114).all()  # the fourth place is empty


def test_class_ids_have_21_colours_that_differ():
    colours = [class_colour(label) for label in range(21)]
    distances = [
        sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        for one, other in combinations(colours, 2)
    ]
    assert min(distances) > 30
    assert [class_colour(21 + label) for label in range(21)] == colours
    assert colours[:2] == [(0, 114, 178), (230, 159, 0)]


def test_train_and_val_pictures_show_a_class_in_the_same_colour(tmp_path):
    targets = torch.tensor([[0, 5, 0.5, 0.5, 0.5, 0.5]])
    grey = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    batch = SimpleNamespace(images=grey, targets=targets, files=["one.jpg"])
    save_labels(batch, list("abcdef"), tmp_path / "labels.jpg")
    found = [torch.tensor([[16.0, 16.0, 48.0, 48.0, 0.9, 5.0]])]
    batch_pictures(list("abcdef"), tmp_path, 1)(batch, found)
    for name in ("labels.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg"):
        left_edge = pixels(tmp_path / name)[TILE // 2, TILE // 4]
        distances = [abs(left_edge - class_colour(label)).sum() for label in range(6)]
        assert np.argmin(distances) == 5, name  # JPEG blurs colours of thin lines


def test_labels_of_a_batch_in_pixels():
    targets = torch.tensor([[1, 2, 0.5, 0.5, 0.5, 0.25], [0, 1, 0.25, 0.5, 0.1, 0.2]])
    batch = SimpleNamespace(images=torch.zeros(2, 3, 40, 80), targets=targets)
    first, second = label_boxes(batch)
    torch.testing.assert_close(first, torch.tensor([[16.0, 16.0, 24.0, 24.0, 1.0, 1.0]]))
    torch.testing.assert_close(second, torch.tensor([[20.0, 15.0, 60.0, 25.0, 1.0, 2.0]]))


def test_batch_pictures_stop_after_their_number(tmp_path):
    evaluate(
        Replay(PERFECT, 2),
        loader_of(LABELS, 1),
        names=["a", "b"],
        on_batch=batch_pictures(["a", "b"], tmp_path, 2),
        progress=False,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"val_batch{i}_{kind}.jpg" for i in (0, 1) for kind in ("labels", "pred")
    ]
