"""The scores that presume sparse training, against references of three lines and against their
nearest neighbours.
"""

import numpy as np
import pytest
import torch
from torch import nn

from prune_methods import (
    PRUNERS,
    Limits,
    Pace,
    Prunable,
    Target,
    find_groups,
    run_preflight,
)
from prune_methods.criteria.scoring import countable
from tests.prune_toys import Chain, Csp, toy
from utils.errors import UserError

MEMBERS = {
    "stem.0": ["stem.1"],
    "left.0": ["left.1", "inner.1"],
    "right.0": ["right.1"],
    "join.0": ["join.1"],
}
COUPLED = np.array([[1.0, 2.0, 3.0, 6.0], [3.0, 2.0, 1.0, 2.0]])  # means 2 2 2 4


def mid_energy(model):
    """Sum of w^2 of outputs of mid, gamma, inputs of out; mean over the three."""
    w, gamma, reader = model.mid[0].weight, model.mid[1].weight, model.out.weight
    return (
        torch.stack([w.square().sum((1, 2, 3)), gamma.square(), reader.square().sum((0, 2, 3))])
        .mean(0)
        .detach()
        .numpy()
    )


@pytest.mark.parametrize("method", ["slim", "group_slim"])
def test_slim_is_the_plain_mean_of_coupled_gammas(method):
    model = toy(Csp)
    with torch.no_grad():
        model.left[1].weight.neg_()  # a sign says nothing
    found = Prunable(model, find_groups(model)).scores(PRUNERS[method]())
    for name, norms in MEMBERS.items():
        reference = (
            torch.stack([model.get_submodule(n).weight.abs().double() for n in norms])
            .mean(0)
            .detach()
            .numpy()
        )
        np.testing.assert_allclose(found[name], reference, rtol=1e-12)


def test_group_sl_equals_the_reference():
    model = toy(Chain).double()
    energy = mid_energy(model)
    np.testing.assert_allclose(
        Prunable(model, find_groups(model)).scores(PRUNERS["group_sl"]())["mid.0"],
        energy / energy.max(),
        rtol=1e-12,
    )
    np.testing.assert_allclose(PRUNERS["group_sl"]().score(COUPLED), [0.5, 0.5, 0.5, 1.0])


def test_group_reg_equals_the_reference():
    model = toy(Chain).double()
    energy = mid_energy(model)
    np.testing.assert_allclose(
        Prunable(model, find_groups(model)).scores(PRUNERS["group_reg"]())["mid.0"],
        energy / energy.mean(),
        rtol=1e-12,
    )


@pytest.mark.parametrize("method", ["slim", "group_slim", "group_sl", "group_reg"])
def test_equal_and_zero_weights_give_finite_scores(method):
    criterion = PRUNERS[method]()
    assert criterion.sparse
    assert (criterion.score(np.zeros((2, 5))) == 0).all()
    np.testing.assert_allclose(criterion.score(np.full((3, 4), 1.0)), 1.0)


def test_only_methods_with_a_penalty_presume_sparse_training():
    assert [name for name in PRUNERS if PRUNERS[name].sparse] == [
        "group_sl",
        "group_reg",
        "slim",
        "group_slim",
    ]


def cut(model, method, number, min_channels=1):
    """Channels left by group after removing `number` of them."""
    found = find_groups(model)
    steps = 200 * number // sum(g.size for g in found)
    plan = Prunable(model, found).search(
        PRUNERS[method](),
        Target(1e9, imgsz=32),
        limits=Limits(min_channels),
        pace=Pace(max_steps=steps),
    )
    return {name: int(mask.sum()) for name, mask in plan.masks.items()}


def test_slim_empties_a_sparse_layer_first_where_a_normalised_score_does_not():
    model = toy(Chain)
    with torch.no_grad():
        for weight in (model.mid[0].weight, model.mid[1].weight, model.out.weight):
            weight.mul_(1e-3)  # all of mid is nearly zero
    assert cut(model, "slim", 5) == {"stem.0": 8, "mid.0": 1}
    assert cut(model, "slim", 5, min_channels=4) == {
        "stem.0": 5,
        "mid.0": 4,
    }  # alive, the rest is taken elsewhere
    assert cut(model, "group_norm", 5)["stem.0"] < 8 and cut(model, "group_sl", 5)["stem.0"] < 8


def test_slim_sees_gammas_only_where_its_neighbours_see_filters():
    model = toy(Chain)
    with torch.no_grad():
        model.mid[0].weight[0].mul_(100)
        model.mid[1].weight.copy_(torch.tensor([0.1, 1.0, 1.0, 1.0, 1.0, 1.0]))
    found = find_groups(model)
    assert Prunable(model, found).scores(PRUNERS["slim"]())["mid.0"].argmin() == 0
    for method in ("l1", "group_norm", "group_sl", "group_reg"):
        assert Prunable(model, found).scores(PRUNERS[method]())["mid.0"].argmax() == 0


def test_group_sl_differs_from_group_reg_across_groups():
    # one strong channel among many weak ones: relative to the mean the weak ones gain by the width
    # of the group
    wide, narrow = np.array([[8.0] + [0.5] * 15]), np.array([[8.0, 1.0]])
    sl, reg = PRUNERS["group_sl"](), PRUNERS["group_reg"]()
    assert sl.score(wide)[1] < sl.score(narrow)[1]
    assert reg.score(wide)[1] > reg.score(narrow)[1]


def test_fresh_gammas_tie_and_still_an_exact_number_goes():
    model = toy(Chain)
    for norm in (model.stem[1], model.mid[1]):
        nn.init.ones_(norm.weight)
    assert cut(model, "slim", 7) == {"stem.0": 1, "mid.0": 6}  # ties go by index


class Bare(Chain):
    """mid has no batch norm."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.SiLU())


def test_a_group_without_a_norm_is_skipped_by_name():
    model = toy(Bare)
    found = find_groups(model)
    left, skipped = countable(found, PRUNERS["slim"]())
    assert [g.name for g in left] == ["stem.0"] and [s.layer for s in skipped] == ["mid.0"]
    assert "norm" in skipped[0].reason
    assert countable(found, PRUNERS["lamp"]()) == (found, [])
    with pytest.raises(UserError, match=r"mid\.0.*for_criterion"):
        Prunable(model, found).search(PRUNERS["slim"](), Target(1.5, imgsz=32))
    assert Prunable(model, left).search(PRUNERS["slim"](), Target(1.2, imgsz=32)).met


def test_a_layer_with_a_norm_without_gamma_stays_whole():
    """The graph does not know such a norm as a layer; the probe finds that its statistics were not
    cut.
    """
    model = toy(Chain)
    model.mid[1] = nn.BatchNorm2d(6, affine=False)
    found, skipped = run_preflight(model)
    assert [g.name for g in found] == ["stem.0"]
    assert "running_mean" in {s.layer: s.reason for s in skipped}["mid.0"]
