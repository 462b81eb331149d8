import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import build_model, load_model, save_model
from prune_methods import PRUNERS, ChannelIndex, Plan, Prunable, Target, find_groups
from prune_methods.surgery.cut import largest_difference
from prune_methods.surgery.verify import TOLERANCE, verify
from tests.prune_toys import TINY_REP, Chain, Csp, Rep, randomised, toy
from utils.config import load_yaml, resolve
from utils.errors import UserError


def random_masks(found, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    masks = {g.name: rng.random(g.size) < share for g in found}
    for mask in masks.values():
        mask[rng.integers(len(mask))] = True
    return masks


def assert_equals_zeroed(model):
    found = find_groups(model)
    masks = random_masks(found)
    smaller = Prunable(model, found).cut(masks)
    assert largest_difference(smaller, Prunable(model, found).zero_channels(masks)) < TOLERANCE
    assert largest_difference(smaller, model) > 100 * TOLERANCE  # the comparison would notice
    return smaller


@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_cut_equals_zeroed_channels(kind):
    smaller = assert_equals_zeroed(toy(kind))
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (
                module.out_channels,
                module.in_channels // module.groups,
            )
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)


def test_cut_takes_the_right_weights():
    model = toy(Chain)
    found = find_groups(model)
    masks = {
        "stem.0": np.array([1, 0, 1, 1, 0, 1, 1, 1], bool),
        "mid.0": np.array([0, 1, 1, 1, 1, 0], bool),
    }
    smaller = Prunable(model, found).cut(masks)
    stem, mid = [0, 2, 3, 5, 6, 7], [1, 2, 3, 4]
    assert torch.equal(smaller.mid[0].weight, model.mid[0].weight[mid][:, stem])
    assert torch.equal(smaller.mid[1].running_var, model.mid[1].running_var[mid])
    assert torch.equal(smaller.out.weight, model.out.weight[:, mid]) and torch.equal(
        smaller.out.bias, model.out.bias
    )
    assert model.mid[0].weight.shape == (6, 8, 3, 3)  # the original is untouched


def test_implicit_shrinks_with_its_inputs_and_the_factor_does_not():
    model = toy(Rep)
    smaller = Prunable(model, find_groups(model)).cut({"stem.0": np.arange(10) < 7})
    assert (
        torch.equal(smaller.implicit, model.implicit[:, :7])
        and smaller.factor.shape == model.factor.shape
    )
    assert isinstance(smaller.implicit, nn.Parameter) and len(smaller.same.weight) == 7


QUICK = ("yolov5n", "yolov7-tiny", "yolov7-tiny-deploy")
SLOW = (
    "yolov5s",
    "yolov5m",
    "yolov5l",
    "yolov5x",
    "yolov7",
    "yolov7x",
    "yolov7-deploy",
    "yolov7x-deploy",
)


def test_every_base_model_is_in_the_next_test():
    configs = Path(models.__file__).parent / "configs"
    assert sorted((*QUICK, *SLOW)) == sorted(
        p.stem for family in ("yolov5", "yolov7") for p in (configs / family).glob("*.yaml")
    )


@pytest.mark.parametrize(
    "cfg", [TINY_REP, *QUICK, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_real_models_cut_equal_zeroed(cfg):
    torch.manual_seed(0)
    smaller = assert_equals_zeroed(randomised(build_model(cfg, nc=3)))
    deployed = copy.deepcopy(smaller).fuse()
    assert largest_difference(deployed, smaller) < TOLERANCE


@pytest.mark.parametrize(
    "cfg",
    [
        TINY_REP,
        "yolov5n",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("yolov7-tiny", "yolov7")),
    ],
)
def test_pruned_model_saves_trains_and_prunes_again(cfg, tmp_path):
    torch.manual_seed(0)
    model = randomised(build_model(cfg, nc=3))
    found = find_groups(model)
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(2.0))
    smaller = Prunable(model, found).cut(plan.masks)
    verify(ChannelIndex(model, found), plan.masks, plan.macs, smaller)
    save_model(smaller, tmp_path / "pruned.pt")
    again = load_model(tmp_path / "pruned.pt")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(smaller.eval()(x)[0], again.eval()(x)[0])
    sum(level.square().mean() for level in again.train()(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in again.parameters())
    refound = find_groups(again)
    second = Prunable(again, refound).search(PRUNERS["lamp"](), Target(1.5))
    third = Prunable(again, refound).cut(second.masks)
    assert second.met and second.base_macs == plan.macs
    assert (
        largest_difference(third, Prunable(again, refound).zero_channels(second.masks)) < TOLERANCE
    )
    assert third.info()["macs"] == second.macs


def test_verify_refuses_a_cut_that_does_not_follow_the_plan():
    model = toy(Chain)
    found = find_groups(model)
    plan = Prunable(model, found).search(PRUNERS["l1"](), Target(1.5, imgsz=32))
    good = Prunable(model, found).cut(plan.masks)
    verify(ChannelIndex(model, found), plan.masks, plan.macs, good, imgsz=32)
    other = {name: np.roll(mask, 1) for name, mask in plan.masks.items()}
    with pytest.raises(UserError, match="--ignore"):
        verify(
            ChannelIndex(model, found),
            plan.masks,
            plan.macs,
            Prunable(model, found).cut(other),
            imgsz=32,
        )
    wrong = Plan(plan.masks, plan.steps, plan.base_macs, plan.macs + 1, plan.target)
    with pytest.raises(AssertionError, match="predicted"):
        verify(ChannelIndex(model, found), wrong.masks, wrong.macs, good, imgsz=32)


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu_is_cut_with_its_channels(slopes):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.act = nn.Conv2d(3, 8, 3), nn.PReLU(slopes)
            self.out = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.out(self.act(self.stem(x)))

    model = Net()
    nn.init.uniform_(model.act.weight, -1, 1)
    smaller = assert_equals_zeroed(model)
    width = smaller.stem.out_channels if slopes > 1 else 1
    assert smaller.act.num_parameters == len(smaller.act.weight) == width
    assert smaller.stem.out_channels < 8 and len(find_groups(model)) == 1


def test_a_detector_with_prelu_has_the_groups_of_one_without():
    cfg = load_yaml(resolve("yolov5n", "model")) | {"width_multiple": 0.125}
    plain, prelu = (build_model(cfg | {"activation": a}) for a in ("nn.ReLU()", "nn.PReLU()"))
    assert [g.name for g in find_groups(prelu)] == [g.name for g in find_groups(plain)]
    assert_equals_zeroed(randomised(prelu))
