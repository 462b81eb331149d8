"""Decoding, bias initialisation, anchors."""

import math

import pytest
import torch

from models import build_model
from models.heads.detect import Detect, IDetect
from utils.errors import UserError

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


def make(kind: type[Detect] = Detect, nc: int = 3) -> Detect:
    return kind((4, 6), (8.0, 16.0), nc, ANCHORS)


def maps_of(head: Detect, size: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2, c, size // s, size // s) for c, s in ((4, 8), (6, 16))]


def test_shapes_in_training_and_eval() -> None:
    head = make()
    x = maps_of(head)
    raw = head(x)
    assert [tuple(y.shape) for y in raw] == [(2, 2, 4, 4, 8), (2, 2, 2, 2, 8)]
    boxes, again = head.eval()(x)
    assert boxes.shape == (2, 2 * 16 + 2 * 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(raw, again, strict=True))


def test_decoding_by_hand() -> None:
    head = make().eval()
    y = torch.zeros(1, 2, 2, 3, 8)
    y[0, 1, 1, 2, :4] = torch.tensor(
        [1.0, -1.0, 2.0, -2.0]
    )  # anchor 1, row 1, column 2 of level 1 (stride 16)
    y[0, 1, 1, 2, 4] = 3.0
    box = head.decode_level(y, 1)[0, 1 * 6 + 1 * 3 + 2].tolist()

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    expected = [
        (2 * sigmoid(1.0) - 0.5 + 2) * 16,
        (2 * sigmoid(-1.0) - 0.5 + 1) * 16,
        (2 * sigmoid(2.0)) ** 2 * 62,
        (2 * sigmoid(-2.0)) ** 2 * 45,
        sigmoid(3.0),
    ]
    assert box[:5] == pytest.approx(expected, rel=1e-5)
    assert box[5:] == [0.5] * 3


def test_anchors_are_kept_in_grid_units_and_pixels() -> None:
    head = make(IDetect)
    assert head.anchors[1].tolist() == [[30 / 16, 61 / 16], [62 / 16, 45 / 16]]
    assert head.anchor_grid.flatten().tolist() == pytest.approx(
        [v for level in ANCHORS for v in level]
    )
    head.set_anchors(torch.full((2, 2, 2), 40.0))
    assert head.anchors[0].unique().tolist() == [5.0]
    assert head.anchor_grid.unique().tolist() == [40.0]


def test_bias_starts_at_the_expected_frequencies() -> None:
    torch.manual_seed(0)
    plain = [torch.nn.Conv2d(c, 16, 1) for c in (4, 6)]
    torch.manual_seed(0)
    head = make()
    for stride, conv, reference in zip((8, 16), head.m, plain, strict=True):
        added = (conv.bias - reference.bias).view(2, 8)
        assert added[:, :4].abs().max() == 0
        assert added[:, 4].tolist() == pytest.approx(
            [math.log(8 / (640 / stride) ** 2)] * 2, abs=1e-5
        )
        assert added[:, 5:].flatten().tolist() == pytest.approx(
            [math.log(0.6 / (3 - 0.99999))] * 6, abs=1e-5
        )


def test_bias_from_class_counts() -> None:
    head = make()
    before = head.m[0].bias.detach().clone().view(2, 8)
    head.initialise_bias(torch.tensor([1.0, 2.0, 5.0]))
    added = (head.m[0].bias.detach().view(2, 8) - before)[0, 5:]
    assert added.tolist() == pytest.approx(
        [math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)], abs=1e-5
    )


def test_anchors_against_the_strides_are_turned_round() -> None:
    right = make()
    turned = Detect((4, 6), (8.0, 16.0), 3, ANCHORS[::-1])
    assert torch.equal(turned.anchors_px, right.anchors_px)


def test_wrong_number_of_levels_is_the_users_error() -> None:
    with pytest.raises(UserError, match="2 levels of anchors for 3 inputs"):
        build_model("yolov5n", anchors=ANCHORS)


def test_a_number_of_anchors_makes_that_many() -> None:
    model = build_model("yolov5n", nc=2, anchors=4)
    assert model.head.anchors.shape == (3, 4, 2)
    assert model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 4, 8, 8, 7)


def test_strides_of_models() -> None:
    assert build_model("yolov7-tiny", nc=1).stride.tolist() == [8, 16, 32]
