from dataclasses import replace

import numpy as np
import pytest
import torch

from models import build_model
from prune_methods import (
    PRUNERS,
    Limits,
    Pace,
    Plan,
    Prunable,
    Target,
    find_groups,
)
from prune_methods.criteria.base import Criterion
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost, deploy_free
from prune_methods.search.plan import floors
from prune_methods.surgery.verify import deployed_macs
from tests.prune_toys import TINY_REP, Chain, Csp, measure_for, source_of, toy
from utils.profiling import count_macs

SIZE = 32


def run(model, target, method="lamp", cost_fn=None, limits=None, on_step=None, **pace) -> Plan:
    found, criterion = find_groups(model), PRUNERS[method]()
    return Prunable(model, found).search(
        criterion,
        Target(target, cost_fn, SIZE),
        limits,
        Pace(**pace),
        source_of(measure_for(model, found, criterion)),
        on_step,
    )


def chain_macs(stem: int, mid: int) -> int:
    return SIZE * SIZE * (9 * 3 * stem + 9 * stem * mid + mid * 4)


def test_cost_by_hand():
    model = toy(Chain)
    index = ChannelIndex(model, find_groups(model))
    cost, keep = Cost(index, SIZE), index.all_kept()
    assert cost.base == cost.macs(keep) == chain_macs(8, 6) and cost.other == 0
    keep[[0, 3, 8]] = False  # two of stem, one of mid
    assert cost.macs(keep) == chain_macs(6, 5)
    assert cost.parameters(keep) == 27 * 6 + 2 * 6 + 54 * 5 + 2 * 5 + 5 * 4 + 4


def test_branches_that_fold_cost_nothing():
    model = build_model(TINY_REP)
    assert deploy_free(model) >= {
        "model.2.rbr_1x1.0",
        "model.3.rbr_1x1.0",
    } and "model.2.rbr_dense.0" not in deploy_free(model)
    found = find_groups(model)
    plan = Prunable(model, found).search(PRUNERS["l1"](), Target(1.8))
    smaller = Prunable(model, found).cut(plan.masks)
    assert smaller.info()["macs"] == plan.macs and plan.base_macs == model.info()[
        "macs"
    ] < count_macs(model)


@pytest.mark.parametrize("kind", [Chain, Csp])
@pytest.mark.parametrize("method", PRUNERS)
def test_prediction_equals_measurement(kind, method):
    model = toy(kind)
    plan = run(model, 2.5, method, limits=Limits(min_channels=1))
    smaller = Prunable(model, find_groups(model)).cut(plan.masks)
    assert deployed_macs(smaller, SIZE) == plan.macs == plan.steps[-1].macs
    assert sum(p.numel() for p in smaller.parameters()) == plan.steps[-1].parameters
    assert plan.met and plan.speed_up == plan.steps[-1].speed_up >= 2.5


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("per_layer", [False, True])
def test_target_is_met_within_one_channel(method, per_layer):
    model = toy(Csp)
    found, index = find_groups(model), ChannelIndex(model, find_groups(model))
    cost = Cost(index, SIZE)
    plan = run(model, 2.0, method, per_layer=per_layer)
    keep = index.flatten(plan.masks)
    assert cost.base / cost.macs(keep) >= 2.0
    back = [np.where(np.arange(len(keep)) == c, True, keep) for c in np.flatnonzero(~keep)]
    assert any(
        cost.base / cost.macs(k) < 2.0 for k in back
    )  # the channel that went last was needed
    assert len(found) == len(plan.masks)


@pytest.mark.parametrize("method", ["l1", "lamp", "random"])
def test_no_channel_of_the_last_step_could_have_stayed(method):
    """Channels cost differently: without filling up, a costly last one would leave the target far
    behind.
    """
    model = build_model("yolov5n", nc=2)
    found, masks = find_groups(model), []
    plan = Prunable(model, found).search(
        PRUNERS[method](), Target(2.0), on_step=lambda step, kept: masks.append(kept)
    )
    index = ChannelIndex(model, found)
    cost, keep = Cost(index, 640), index.flatten(plan.masks)
    last = np.flatnonzero(index.flatten(masks[-2]) & ~keep)
    assert len(last)
    for channel in last:
        keep[channel] = True
        assert cost.macs(keep) > plan.base_macs / 2.0 >= plan.macs
        keep[channel] = False


def test_one_step_takes_an_exact_number_whatever_the_ties():
    model = toy(Csp)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    plan = run(model, 1e9, "l1", max_steps=30)
    total = sum(g.size for g in find_groups(model))
    assert sum(int(m.sum()) for m in plan.masks.values()) == int(total * (1 - 30 / 200))
    assert not plan.met and len(plan.steps) == 30


def test_per_layer_shrinks_all_alike():
    model = toy(Csp)
    plan = run(model, 1e9, "l1", per_layer=True, max_steps=100, limits=Limits(min_channels=1))
    assert {g.name: int(plan.masks[g.name].sum()) for g in find_groups(model)} == {
        g.name: g.size // 2 for g in find_groups(model)
    }


def test_floors():
    sizes = np.array([3, 16, 100])
    assert floors(sizes, Limits(4)).tolist() == [3, 4, 4]
    assert floors(sizes, Limits(1, max_ratio=0.5)).tolist() == [2, 8, 50]
    assert floors(sizes, Limits(1, max_ratio=0.9)).tolist() == [
        1,
        2,
        10,
    ]  # 0.1 x 100 is a hair above 10 in floats
    assert floors(sizes, Limits(4, round_to=8)).tolist() == [3, 8, 8]
    assert floors(sizes, Limits(4), np.array([1, 2, 8])).tolist() == [
        3,
        2,
        1,
    ]  # several channels each


@pytest.mark.parametrize("limits", [Limits(5), Limits(1, 0.5), Limits(2, 0.75, 4)])
@pytest.mark.parametrize("per_layer", [False, True])
def test_limits_are_true_clamps_and_what_is_reachable_is_reached(limits, per_layer):
    model = toy(Csp)
    plan = run(model, 1e9, "l1", limits=limits, per_layer=per_layer, max_steps=200)
    left = np.array([plan.masks[g.name].sum() for g in find_groups(model)])
    assert left.tolist() == floors(np.array([g.size for g in find_groups(model)]), limits).tolist()
    assert plan.speed_up == pytest.approx(
        Prunable(model, find_groups(model)).reachable(limits, imgsz=SIZE)
    )
    assert len(plan.steps) < 201 and not plan.met


@pytest.mark.parametrize("per_layer", [False, True])
def test_round_to_gives_multiples_and_meets_the_target(per_layer):
    model = toy(Csp)
    plan = run(model, 1.7, "group_norm", limits=Limits(4, 1.0, 4), per_layer=per_layer)
    assert all(int(m.sum()) % 4 == 0 for m in plan.masks.values())
    assert plan.met and plan.speed_up < 2.2
    assert deployed_macs(Prunable(model, find_groups(model)).cut(plan.masks), SIZE) == plan.macs


class Gamma(Criterion):
    """|gamma| of one layer: does not change as the masks shrink."""

    kinds = frozenset({"norm"})

    def score(self, slices):
        return slices[0]


def test_rounding_brings_the_last_ones_back():
    model = toy(Csp)
    found = find_groups(model)
    plan = Prunable(model, found).search(Gamma(), Target(1.7, imgsz=SIZE), limits=Limits(4, 1.0, 4))
    for name, gamma in Prunable(model, found).scores(Gamma()).items():
        mask = plan.masks[name]
        assert mask.all() or gamma[mask].min() > gamma[~mask].max()


def test_the_same_seed_draws_the_same_cut():
    model = toy(Csp)
    found = find_groups(model)
    first, again, other = (
        Prunable(model, found).search(PRUNERS["random"](seed=s), Target(2.0, imgsz=SIZE)).masks
        for s in (0, 0, 1)
    )
    assert all((first[n] == again[n]).all() for n in first) and any(
        (first[n] != other[n]).any() for n in first
    )


def test_narrow_layers_survive_any_target():
    model = toy(Csp)
    for method in PRUNERS:
        plan = run(model, 1e9, method, limits=Limits(1))
        assert min(int(m.sum()) for m in plan.masks.values()) == 1


def test_steps_are_reported_and_only_shrink():
    seen = []
    model = toy(Csp)
    plan = run(
        model,
        2.0,
        on_step=lambda step, masks: seen.append((step, sum(int(m.sum()) for m in masks.values()))),
    )
    assert [s for s, _ in seen] == list(plan.steps) and [s.step for s in plan.steps] == list(
        range(1, len(plan.steps) + 1)
    )
    assert all(s.channels == kept for s, kept in seen)
    macs = [s.macs for s in plan.steps]
    assert macs == sorted(macs, reverse=True)
    assert not replace(plan, target=9.0).met


@pytest.fixture(scope="module", params=["yolov5n", "yolov7-tiny"])
def real(request):
    model = build_model(request.param, nc=2)
    return model, find_groups(model), count_macs(model.fuse())


@pytest.mark.parametrize("method", PRUNERS)
def test_every_method_reaches_two_on_real_models(real, method):
    model, found, base = real
    criterion = PRUNERS[method]()
    plan = Prunable(model, found).search(
        criterion, Target(2.0), source=source_of(measure_for(model, found, criterion, 64))
    )
    smaller = Prunable(model, found).cut(plan.masks)
    assert plan.base_macs == base and count_macs(smaller.fuse()) == plan.macs
    assert 2.0 <= plan.speed_up < 2.05
