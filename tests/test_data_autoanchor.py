from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.autoanchor import best_possible_recall, check_anchors, evolve_anchors, kmeans_anchors
from models import build_model
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.distill import DistillOptions
from utils.options.train import TrainOptions


def fake_dataset(wh: np.ndarray, shape=(100, 50)) -> SimpleNamespace:
    """One image of (width, height) that holds boxes of the given px sizes."""
    rows = np.concatenate([np.zeros((len(wh), 3)), wh / shape], 1).astype(np.float32)
    return SimpleNamespace(labels=[rows], shapes=np.array([shape]))


def test_best_possible_recall_by_hand():
    anchors = np.array([[10.0, 10.0], [40.0, 20.0]])
    wh = np.array([[10.0, 10.0], [39.0, 10.0], [100.0, 60.0], [10.0, 90.0], [41.0, 6.0]])
    # worse side's ratio to the nearer anchor: 1, 2, 3, 9 / 4.5, 4.1 / 3.33
    assert best_possible_recall(wh, anchors, 4.0) == 4 / 5
    assert best_possible_recall(wh, anchors, 2.5) == 2 / 5
    assert best_possible_recall(wh, anchors, 3.2) == 3 / 5


def test_kmeans_finds_clusters_and_evolution_never_loses():
    rng = np.random.default_rng(0)
    centres = np.array([[8.0, 8.0], [30.0, 60.0], [90.0, 40.0]])
    wh = (centres[:, None] * rng.uniform(0.95, 1.05, (3, 50, 2))).reshape(-1, 2)
    found = min(
        (kmeans_anchors(wh, 3, np.random.default_rng(s)) for s in range(5)),
        key=lambda a: np.abs(a - centres).max(),
    )
    np.testing.assert_allclose(found, centres, rtol=0.03)
    poor = np.array([[4.0, 4.0], [12.0, 13.0], [21.0, 9.0]])
    better = evolve_anchors(wh, poor, 4.0, rng)
    assert best_possible_recall(wh, better, 4.0) > best_possible_recall(wh, poor, 4.0)
    assert (better.prod(1)[1:] >= better.prod(1)[:-1]).all()


def test_anchors_that_fit_stay():
    model = build_model("yolov5n", nc=2)
    before = model.head.anchors.clone()
    assert (
        check_anchors(fake_dataset(np.array([[30.0, 40.0], [90.0, 50.0]])), model, 4.0, imgsz=640)
        == 1.0
    )  # type: ignore[arg-type]
    assert torch.equal(before, model.head.anchors)


def test_anchors_that_do_not_fit_are_replaced_smallest_level_first():
    wh = np.random.default_rng(0).uniform(2, 6, (200, 2))
    model = build_model("yolov5n", nc=2)
    recall = check_anchors(fake_dataset(wh), model, 4.0, imgsz=100)  # type: ignore[arg-type]
    assert recall > 0.98
    pixels = (model.head.anchors * model.head.stride.view(-1, 1, 1)).view(-1, 2)
    assert pixels.max() < 10
    assert (pixels.prod(1)[1:] >= pixels.prod(1)[:-1]).all()
    again = build_model("yolov5n", nc=2)
    check_anchors(fake_dataset(wh), again, 4.0, imgsz=100)  # type: ignore[arg-type]
    assert torch.equal(again.head.anchors, model.head.anchors), (
        "the same seed finds the same anchors"
    )


def test_no_boxes():
    assert (
        check_anchors(fake_dataset(np.zeros((0, 2))), build_model("yolov5n"), 4.0, imgsz=64) == 0.0
    )  # type: ignore[arg-type]


@pytest.fixture
def said(monkeypatch) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {"info": [], "warning": []}
    for level, found in lines.items():
        monkeypatch.setattr(LOGGER, level, found.append)
    return lines


TINY_BOXES = np.full((40, 2), 2.2)


def test_the_recall_of_anchors_that_stay_is_always_printed(said):
    model = build_model("yolov5n", nc=2)
    before = model.head.anchors.clone()
    opt = TrainOptions(weights="w.pt", data="set.yaml")
    settings = {"replace": opt.fits_anchors, "remedy": opt.anchor_remedy}
    assert check_anchors(fake_dataset(TINY_BOXES), model, 4.0, 100, **settings) == 0.0
    assert torch.equal(before, model.head.anchors)
    assert "match 0.0% of the boxes only (best possible recall 0.0000" in said["warning"][0]
    assert "python train.py --weights w.pt --data set.yaml --autoanchor" in said["warning"][0]
    boxes = fake_dataset(np.array([[30.0, 40.0]]))
    assert check_anchors(boxes, model, 4.0, 640, **settings) == 1.0
    assert "best possible recall 1.0000" in said["info"][0] and len(said["warning"]) == 1


def test_autoanchor_that_is_asked_for_replaces_the_anchors_of_weights(said):
    opt = TrainOptions(weights="w.pt", data="set.yaml", autoanchor=True)
    model = build_model("yolov5n", nc=2)
    settings = {"replace": opt.fits_anchors, "remedy": opt.anchor_remedy}
    assert check_anchors(fake_dataset(TINY_BOXES), model, 4.0, 100, **settings) == 1.0
    assert "best possible recall 0.0000 -> 1.0000" in said["info"][0] and said["warning"] == []


@pytest.mark.parametrize(
    ("opt", "remedy"),
    [
        (TrainOptions(cfg="yolov5n", noautoanchor=True), "leave out --noautoanchor"),
        (TrainOptions(weights="w.pt", cfg="yolov5n"), "--weights w.pt --cfg yolov5n --data"),
        (DistillOptions(weights="w.pt", teacher="t.pt", logit_loss="ast"), "train the teacher"),
    ],
)
def test_the_remedy_is_one_that_works(opt, remedy):
    assert not opt.fits_anchors and remedy in opt.anchor_remedy


def test_autoanchor_cannot_be_asked_for_and_refused():
    with pytest.raises(UserError, match="exclude each other"):
        TrainOptions(cfg="a", data="b", autoanchor=True, noautoanchor=True).check()
