"""The limits and `--ignore` on whole models, as prune.py has them: true clamps, multiples, layers
that stay whole.
"""

import numpy as np
import pytest
import torch

from models import build_model
from prune_methods import PRUNERS, Limits, Prunable, Target, find_groups
from tests.prune_toys import TINY_REP, randomised


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    model = randomised(build_model("yolov5n", nc=2))
    return model, find_groups(model)


def widths(found, plan) -> tuple[np.ndarray, np.ndarray]:
    return np.array([g.size for g in found]), np.array(
        [int(plan.masks[g.name].sum()) for g in found]
    )


@pytest.mark.parametrize(("method", "round_to"), [("lamp", 8), ("slim", 16)])
def test_cut_widths_are_multiples(nano, method, round_to):
    model, found = nano
    plan = Prunable(model, found).search(
        PRUNERS[method](), Target(2.0, imgsz=64), limits=Limits(round_to=round_to)
    )
    before, after = widths(found, plan)
    cut = after < before
    assert plan.met and cut.sum() > 10 and (after[cut] % round_to == 0).all()
    assert (
        plan.speed_up < 2.0 * 1.1
    )  # a block more would miss the target, so the last block is all it can be off


def test_no_layer_goes_below_its_limits_at_any_target():
    """The library tests its ratio before a step and overshoots."""
    model, limits = build_model(TINY_REP), Limits(10, max_ratio=0.6)
    found = find_groups(model)
    before, after = widths(
        found,
        Prunable(model, found).search(PRUNERS["slim"](), Target(1e9, imgsz=64), limits=limits),
    )
    assert (after >= np.minimum(limits.min_channels, before)).all()
    assert ((before - after) / before <= limits.max_ratio + 1e-9).all()
    assert (
        after
        == np.maximum(
            np.ceil(before * (1 - limits.max_ratio) - 1e-9), np.minimum(limits.min_channels, before)
        )
    ).all()


@pytest.mark.parametrize(
    ("pattern", "whole"),
    [
        ("3", ["model.3.conv"]),
        ("model.8.cv1", ["model.8.cv1.conv"]),
        ("model.*.cv3", [f"model.{row}.cv3.conv" for row in (2, 4, 6, 8, 13, 17, 20, 23)]),
    ],
)
def test_ignored_by_index_name_or_glob_stays_whole_and_the_rest_meets_the_target(
    nano, pattern, whole
):
    model, everything = nano
    found = find_groups(model, [pattern])
    plan = Prunable(model, found).search(PRUNERS["l1"](), Target(1.2, imgsz=64))
    cut = {
        m.name for g in found if not plan.masks[g.name].all() for m in g.members if m.kind == "out"
    }
    assert plan.met and not cut & set(whole)
    free = Prunable(model, everything).search(PRUNERS["l1"](), Target(1.2, imgsz=64))
    assert all(
        any(not free.masks[g.name].all() for g in everything if name in {m.name for m in g.members})
        for name in whole
    )


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("l1", "group_norm"),
        ("group_norm", "lamp"),
        ("group_norm", "group_sl"),
        ("slim", "l1"),
        ("lamp", "random"),
    ],
)
def test_methods_choose_other_channels_than_their_nearest_neighbour(method, other):
    """Of the channels that either removes on the way to 2x at least a tenth are not shared."""
    model = randomised(build_model(TINY_REP))
    found = find_groups(model)
    masks = [
        Prunable(model, found).search(PRUNERS[name](), Target(2.0, imgsz=64)).masks
        for name in (method, other)
    ]
    gone, others = (np.concatenate([~mask[g.name] for g in found]) for mask in masks)
    assert (gone & others).sum() < 0.9 * (gone | others).sum()
