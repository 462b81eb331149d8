import numpy as np
import pytest
import torch

from prune_methods import PRUNERS, Limits, Pace, Prunable, Target, find_groups
from prune_methods.criteria.base import Criterion
from tests.prune_toys import Chain, Csp, toy
from utils.errors import UserError

FILTERS = np.array(
    [[1.0, 2.0, 3.0, 6.0], [3.0, 2.0, 1.0, 2.0]]
)  # sums of two coupled layers, four channels: mean 2 2 2 4


def mid_slices(model, power):
    """The three-line reference: outputs of mid, gamma, inputs of out; mean over the three."""
    w, gamma, reader = model.mid[0].weight, model.mid[1].weight, model.out.weight
    parts = [
        w.abs().pow(power).sum((1, 2, 3)),
        gamma.abs().pow(power),
        reader.abs().pow(power).sum((0, 2, 3)),
    ]
    return torch.stack(parts).double().mean(0).detach().numpy()


def test_registry_names_every_method_and_suggests():
    dense = {"l1", "random", "group_norm", "lamp", "group_fisher", "group_hessian", "group_taylor"}
    sparse = {"slim", "group_slim", "group_sl", "group_reg"}
    assert dense | sparse <= set(PRUNERS.names())
    with pytest.raises(UserError, match="did you mean 'lamp'"):
        PRUNERS["lmap"]


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("group_norm", 2)])
def test_magnitudes_equal_the_reference(method, power):
    model = toy(Chain).double()
    mean = mid_slices(model, power)
    np.testing.assert_allclose(
        Prunable(model, find_groups(model)).scores(PRUNERS[method]())["mid.0"],
        mean / mean.mean(),
        rtol=1e-12,
    )


def test_lamp_equals_the_reference():
    model = toy(Chain).double()
    energy = mid_slices(model, 2)
    reference = [e / energy[energy >= e].sum() for e in energy]
    np.testing.assert_allclose(
        Prunable(model, find_groups(model)).scores(PRUNERS["lamp"]())["mid.0"],
        reference,
        rtol=1e-12,
    )


def test_hand_computed():
    np.testing.assert_allclose(PRUNERS["l1"]().score(FILTERS), [0.8, 0.8, 0.8, 1.6])
    np.testing.assert_allclose(PRUNERS["lamp"]().score(FILTERS), [0.2, 0.25, 1 / 3, 1.0])


def test_neighbours_differ():
    # l1 | group_norm: one large weight against many small ones. group_norm | lamp: the same order,
    # another scale
    model = toy(Chain)
    with torch.no_grad():
        model.mid[0].weight[0].fill_(0.01).view(-1)[0] = 2.0  # |w| 2.71, w^2 4.01
        model.mid[0].weight[1].fill_(0.1)  # |w| 7.2, w^2 0.72
        model.mid[1].weight[:2] = 1.0
        model.out.weight[:, :2] = 0.1
    found = find_groups(model)
    s = {
        name: Prunable(model, found).scores(PRUNERS[name]())["mid.0"]
        for name in ("l1", "group_norm", "lamp", "random")
    }
    assert s["l1"][0] < s["l1"][1] and s["group_norm"][0] > s["group_norm"][1]
    assert (np.argsort(s["lamp"]) == np.argsort(s["group_norm"])).all() and s[
        "lamp"
    ].max() == 1 < s["group_norm"].max()
    assert not np.allclose(np.argsort(s["random"]), np.argsort(s["l1"]))


def test_random_is_uniform_and_seeded():
    model = toy(Csp)
    found = find_groups(model)
    first, again, other = (
        np.concatenate(list(Prunable(model, found).scores(PRUNERS["random"](seed=s)).values()))
        for s in (0, 0, 1)
    )
    assert (first == again).all() and (first != other).all()
    draws = PRUNERS["random"]().score(np.zeros((1, 20000)))
    assert abs(draws.mean() - 0.5) < 0.01 and draws.min() >= 0 and draws.max() < 1


@pytest.mark.parametrize("method", ["l1", "group_norm", "lamp"])
def test_equal_and_zero_weights_give_finite_scores(method):
    criterion = PRUNERS[method]()
    assert (criterion.score(np.zeros((2, 5))) == 0).all()
    equal = criterion.score(np.ones((3, 4)))
    expected = [1 / 4, 1 / 3, 1 / 2, 1] if method == "lamp" else [1, 1, 1, 1]
    np.testing.assert_allclose(equal, expected)


def test_lamp_keeps_precision_over_many_channels():
    energies = np.geomspace(1e-12, 1.0, 4096)[None]
    lamp = PRUNERS["lamp"]().score(energies)
    reference = [e / np.sum(energies[0, i:][::-1]) for i, e in enumerate(energies[0])]
    np.testing.assert_allclose(lamp, reference, rtol=1e-9)


def test_scores_follow_the_mask():
    model = toy(Chain)
    found = find_groups(model)
    masks = {"stem.0": np.arange(8) % 2 == 0, "mid.0": np.array([1, 1, 0, 1, 1, 1], dtype=bool)}
    masked = Prunable(model, found).scores(PRUNERS["l1"](), masks)
    smaller = Prunable(model, found).cut(masks)
    cut = Prunable(smaller, find_groups(smaller)).scores(PRUNERS["l1"]())
    for name, mask in masks.items():
        np.testing.assert_allclose(masked[name][mask], cut[name], rtol=1e-12)
        assert np.isinf(masked[name][~mask]).all()


def test_a_method_of_ones_own_needs_one_function():
    class Last(Criterion):
        kinds = frozenset({"norm"})

        def score(self, slices):
            return slices[0]  # |gamma|, not normalised: Network Slimming

    model = toy(Chain)
    with torch.no_grad():
        model.mid[1].weight.mul_(1e-3)
    found = find_groups(model)
    plan = Prunable(model, found).search(
        Last(), Target(1e9, imgsz=32), limits=Limits(min_channels=1), pace=Pace(max_steps=70)
    )
    assert (
        plan.masks["mid.0"].sum() == 1 and plan.masks["stem.0"].sum() == 8
    )  # the wholly sparse layer goes first
