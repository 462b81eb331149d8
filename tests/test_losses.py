"""Losses against the slow reference, hand-computed cases and the properties they must have."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from models.heads.detect import Detect
from tests import reference_losses
from utils.config import Hyp
from utils.errors import UserError
from utils.losses import build_loss

V5_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
V7_ANCHORS = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401))
SIZE = 96
STRIDES = (8, 16, 32)


def model_of(nc, anchors=V5_ANCHORS, strides=STRIDES):
    stride = torch.tensor([float(s) for s in strides])
    grid_anchors = torch.tensor(anchors).float().view(len(strides), 3, 2) / stride[:, None, None]
    head = Detect((8,) * len(strides), strides, nc, [list(level) for level in anchors])
    assert torch.equal(head.anchors, grid_anchors)
    return SimpleNamespace(head=head)


def random_maps(
    nc, images=2, seed=0, height=SIZE, width=SIZE, strides=STRIDES, dtype=torch.float64
):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, 3, height // s, width // s, 5 + nc) for s in strides]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).mul(1.5).requires_grad_()
        for shape in shapes
    ]


def random_targets(nc, count, images=2, seed=0, dtype=torch.float64):
    """Boxes of all sizes; some sit on cell borders, in corners and on top of each other."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 6, generator=generator, dtype=dtype)
    targets[:, 0] = (targets[:, 0] * images).floor()
    targets[:, 1] = (targets[:, 1] * nc).floor()
    targets[:, 4:] = 0.03 + 0.7 * targets[:, 4:] ** 2
    targets[::4, 2:4] = (
        targets[::4, 2:4] * 12
    ).round() / 12  # on the borders of the finest grid, the edge of the image included
    targets[1::5, 2:4] = targets[:1, 2:4]  # crowd on one spot
    targets[1::5, 0] = targets[:1, 0]
    return targets


def losses_of(kind, maps, targets, hyp, model):
    ours = build_loss(model, hyp, kind)(maps, targets)
    theirs = reference_losses.detection_loss(
        maps, targets, model.head.anchors.double(), hyp, use_ota=kind == "ota"
    )
    return ours, theirs


def assert_same(kind, maps, targets, hyp, model):
    (loss, parts), (expected, expected_parts, _) = losses_of(kind, maps, targets, hyp, model)
    assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    assert set(parts) == {"box", "obj", "cls"}
    for name, part in parts.items():
        assert not part.requires_grad
        assert part.shape == ()
        assert_close(part, expected_parts[name].detach(), rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(loss, maps), torch.autograd.grad(expected, maps), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["yolo", "ota"])
@pytest.mark.parametrize(
    ("nc", "count", "anchors"),
    [
        (3, 14, V5_ANCHORS),
        (3, 14, V7_ANCHORS),
        (1, 10, V5_ANCHORS),
        (4, 0, V5_ANCHORS),
        (2, 1, V7_ANCHORS),
    ],
)
def test_value_and_gradient_equal_the_slow_reference(kind, nc, count, anchors):
    hyp = Hyp(box=0.05, cls=0.3, obj=0.7).scaled(3, nc, 320)
    assert_same(kind, random_maps(nc), random_targets(nc, count), hyp, model_of(nc, anchors))


@pytest.mark.parametrize("kind", ["yolo", "ota"])
@pytest.mark.parametrize(
    "change",
    [
        {"label_smoothing": 0.1},
        {"fl_gamma": 1.5},
        {"cls_pw": 2.0, "obj_pw": 0.5},
        {"anchor_t": 2.9},
    ],
)
def test_options_equal_the_slow_reference(kind, change):
    assert_same(
        kind, random_maps(3, seed=1), random_targets(3, 10, seed=1), Hyp(**change), model_of(3)
    )


@pytest.mark.parametrize("kind", ["yolo", "ota"])
def test_images_need_not_be_square(kind):
    maps = random_maps(2, seed=2, height=64, width=128)
    assert_same(kind, maps, random_targets(2, 10, seed=2), Hyp(), model_of(2))


@pytest.mark.parametrize("kind", ["yolo", "ota"])
def test_four_levels_have_their_own_balance(kind):
    strides = (8, 16, 32, 64)
    model = model_of(2, (*V5_ANCHORS, (436, 615, 739, 380, 925, 792)), strides)
    maps = random_maps(2, seed=3, height=128, width=128, strides=strides)
    assert_same(kind, maps, random_targets(2, 6, seed=3), Hyp(), model)


def test_ota_is_not_the_yolo_loss():
    maps, targets = random_maps(3), random_targets(3, 14)
    yolo, ota = (build_loss(model_of(3), Hyp(), kind)(maps, targets)[1] for kind in ("yolo", "ota"))
    assert ota["box"] < yolo["box"]  # it picks the predictions that overlap best


def test_hand_computed_single_match():
    """All logits 0: the box is the anchor, centred in its cell, every probability one half."""
    model = model_of(2)
    maps = [torch.zeros(1, 3, SIZE // s, SIZE // s, 7) for s in STRIDES]
    # the very middle of cell (5, 3) of the finest grid is near to no neighbour
    target = torch.tensor([[0, 1, 5.5 / 12, 3.5 / 12, 10 / SIZE, 13 / SIZE]])
    hyp = Hyp(
        box=0.05, cls=0.5, obj=1.0, anchor_t=1.1
    )  # so strict that the equal anchor alone fits
    loss, parts = build_loss(model, hyp, "yolo")(maps, target)
    assert parts["box"].item() == pytest.approx(0, abs=1e-6)
    assert parts["cls"].item() == pytest.approx(0.5 * math.log(2))
    assert parts["obj"].item() == pytest.approx(
        5.4 * math.log(2)
    )  # a logit of 0 costs log 2 whatever is wanted
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()))


def test_last_written_target_wins_the_objectness():
    """Two targets share one cell and anchor: the cell is to say the overlap of the later one."""
    model = model_of(1)
    maps = random_maps(1, images=1, dtype=torch.float32)
    big, small = (
        [0, 0, 5.5 / 12, 3.5 / 12, 20 / SIZE, 26 / SIZE],
        [0, 0, 5.5 / 12, 3.5 / 12, 8 / SIZE, 10 / SIZE],
    )
    hyp = Hyp(anchor_t=3.0)
    obj = {}
    for name, rows in {
        "big last": [small, big],
        "small last": [big, small],
        "big": [big],
        "small": [small],
    }.items():
        loss, _ = build_loss(model, hyp, "yolo")(maps, torch.tensor(rows))
        gradient = torch.autograd.grad(loss, maps)[0]
        obj[name] = gradient[0, 0, 3, 5, 4].item()
    assert obj["big last"] == obj["big"]
    assert obj["small last"] == obj["small"]
    assert obj["big"] != obj["small"]


def test_own_cell_gives_way_to_a_neighbour_written_later():
    """Offsets come before targets: a target that reaches in from the left neighbour is written
    after the one that lives there.
    """
    model, hyp = model_of(1), Hyp(anchor_t=3.0)
    maps = random_maps(1, images=1, dtype=torch.float32)
    resident = [0, 0, 5.5 / 12, 3.5 / 12, 20 / SIZE, 26 / SIZE]
    visitor = [
        0,
        0,
        6.25 / 12,
        3.5 / 12,
        10 / SIZE,
        13 / SIZE,
    ]  # first in the list, but its left neighbour comes with the second offset
    values = []
    for rows in ([visitor, resident], [visitor]):
        loss, _ = build_loss(model, hyp, "yolo")(maps, torch.tensor(rows))
        values.append(torch.autograd.grad(loss, maps)[0][0, 0, 3, 5, 4].item())
    assert values[0] == values[1]


def test_autobalance_moves_the_balance_as_published():
    hyp, model = Hyp(autobalance=True), model_of(2)
    maps, targets = random_maps(2), random_targets(2, 6)
    loss = build_loss(model, hyp, "yolo")
    balance = [4.0, 1.0, 0.4]
    for _ in range(3):
        value, _ = loss(maps, targets)
        expected, _, levels = reference_losses.detection_loss(
            maps, targets, model.head.anchors.double(), hyp, balance=balance
        )
        assert_close(value, expected, rtol=1e-6, atol=0)
        balance = [
            0.9999 * old + 0.0001 / level.item() for old, level in zip(balance, levels, strict=True)
        ]
        balance = [old / balance[1] for old in balance]
        assert_close(loss.balance, torch.tensor(balance), rtol=1e-6, atol=0, check_dtype=False)
    assert "balance" in loss.state_dict()  # a resumed run goes on from it


def test_autobalance_rests_during_validation_and_needs_stride_16():
    hyp = Hyp(autobalance=True)
    loss = build_loss(model_of(2), hyp)
    with torch.no_grad():
        loss(random_maps(2), random_targets(2, 6))
    assert loss.balance.tolist() == pytest.approx([4.0, 1.0, 0.4])
    with pytest.raises(UserError, match="stride 16"):
        build_loss(model_of(2, strides=(8, 32, 64)), hyp)


def test_kind_comes_from_the_hyp_unless_given():
    model = model_of(2)
    assert build_loss(model, Hyp(loss="ota")).ota
    assert not build_loss(model, Hyp(loss="ota"), "yolo").ota
    with pytest.raises(UserError, match="did you mean 'yolo'"):
        build_loss(model, Hyp(), "yollo")


@pytest.mark.parametrize("kind", ["yolo", "ota"])
def test_half_precision_maps_and_autocast_compute_in_float32(kind):
    targets = random_targets(3, 10, dtype=torch.float32)
    half = [raw.detach().bfloat16().requires_grad_() for raw in random_maps(3)]
    full = [raw.detach().float().requires_grad_() for raw in half]
    loss = build_loss(model_of(3), Hyp(), kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = loss(half, targets)
    assert value.dtype == torch.float32
    assert_close(value, loss(full, targets)[0], rtol=1e-6, atol=0)
    value.backward()
    assert all(raw.grad.dtype == torch.bfloat16 and raw.grad.abs().sum() > 0 for raw in half)


@pytest.mark.parametrize("kind", ["yolo", "ota"])
def test_saturated_logits_stay_finite(kind):
    maps = [raw.detach().float().sign().mul(60).requires_grad_() for raw in random_maps(3)]
    loss, _ = build_loss(model_of(3), Hyp(), kind)(maps, random_targets(3, 14, dtype=torch.float32))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, maps))


kinds = st.sampled_from(["yolo", "ota"])
seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)


@few
@given(kinds, seeds, st.integers(0, 20))
def test_order_of_targets_does_not_matter_to_box_and_class(kind, seed, count):
    maps, targets = random_maps(3, seed=seed), random_targets(3, count, seed=seed)
    targets[:, 2:] += torch.linspace(0, 1e-3, max(count, 1), dtype=targets.dtype)[
        :count, None
    ]  # no ties
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    loss = build_loss(model_of(3), Hyp(), kind)
    one, other = loss(maps, targets)[1], loss(maps, targets[order])[1]
    assert_close(one["box"], other["box"])
    assert_close(one["cls"], other["cls"])


@few
@given(kinds, seeds, st.integers(0, 20))
def test_the_same_batch_twice_has_the_same_parts_and_double_the_loss(kind, seed, count):
    maps, targets = random_maps(3, seed=seed), random_targets(3, count, seed=seed)
    again = targets.clone()
    again[:, 0] += len(maps[0])
    loss = build_loss(model_of(3), Hyp(), kind)
    once, parts = loss(maps, targets)
    twice, parts_twice = loss([torch.cat((raw, raw)) for raw in maps], torch.cat((targets, again)))
    assert_close(twice, 2 * once)
    assert_close(parts_twice, parts)


@few
@given(kinds, seeds)
def test_gradient_reaches_box_objectness_and_class(kind, seed):
    maps = random_maps(3, seed=seed)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4]], dtype=torch.float64)
    loss, _ = build_loss(model_of(3), Hyp(), kind)(maps, targets)
    gradients = torch.cat([gradient.flatten(0, 3) for gradient in torch.autograd.grad(loss, maps)])
    assert (gradients.abs().sum(0) > 0).all()
    assert (gradients[:, 4] != 0).all()  # every cell is told whether something is there


@few
@given(kinds, seeds, st.floats(0.01, 0.5))
def test_label_smoothing_and_focal_touch_what_they_should(kind, seed, amount):
    maps, targets = random_maps(3, seed=seed), random_targets(3, 8, seed=seed)
    plain, smooth, focal = (
        build_loss(model_of(3), hyp, kind)(maps, targets)[1]
        for hyp in (Hyp(), Hyp(label_smoothing=amount), Hyp(fl_gamma=amount))
    )
    assert_close(smooth["obj"], plain["obj"])
    assert smooth["cls"] != plain["cls"]
    assert_close(focal["box"], plain["box"])
    assert focal["obj"] < plain["obj"]  # alpha and the modulating factor are both below 1
    assert focal["cls"] < plain["cls"]
