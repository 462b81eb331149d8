"""Constants of removed channels: exact where there is no border, and worth it where there is."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from models import build_model
from prune_methods import PRUNERS, Prunable, Target, find_groups
from prune_methods.groups.graph import raw_outputs
from tests.prune_toys import TINY_REP, Chain, Csp, Rep, randomised, toy


def silence(model, found, masks):
    """The model with the scale of every removed channel at zero: what sparse training drives at.

    Betas stay.
    """
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for group in found:
            for member in group.members:
                if member.kind == "norm":
                    gone = member.layer_channels[~masks[group.name][member.group_channels]]
                    silent.get_submodule(member.name).weight[torch.from_numpy(gone)] = 0
    return silent


def plan_of(model, target):
    found = find_groups(model)
    return found, Prunable(model, found).search(PRUNERS["l1"](), Target(target, imgsz=64)).masks


def middle(model, x):
    with torch.no_grad():
        outputs = raw_outputs(model.eval()(x))
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [y[:, :, y.shape[2] // 2, y.shape[3] // 2] for y in outputs]


@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_silent_channels_are_folded_exactly_away_from_borders(kind):
    model = toy(kind)
    found, masks = plan_of(model, 2.0)
    silent = silence(model, found, masks)
    smaller = Prunable(silent, found).cut(masks)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    [wanted], [plain] = middle(silent, x), middle(smaller, x)
    result = Prunable(silent, found).fold_constants(masks, smaller)
    [folded] = middle(smaller, x)
    assert result.folded > 0 and result.left == 0
    assert (folded - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (
        plain - wanted
    ).abs().max() > 0.01 * wanted.abs().max()  # so that there was something to fold


def test_by_hand():
    """One removed channel that says silu(2) to a 1x1 convolution with a bias, and to one with a
    batch norm.
    """

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.act = (
                nn.Conv2d(3, 2, 1, bias=False),
                nn.BatchNorm2d(2),
                nn.SiLU(),
            )
            self.biased = nn.Conv2d(2, 1, 1)
            self.bare, self.after = nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1)

        def forward(self, x):
            x = self.act(self.norm(self.stem(x)))
            return [self.biased(x), self.after(self.bare(x))]

    torch.manual_seed(0)
    model = Two().eval()
    with torch.no_grad():
        model.norm.weight[1], model.norm.bias[1] = 0, 2.0
    said = float(torch.nn.functional.silu(torch.tensor(2.0)))
    found = find_groups(model)
    masks = {
        g.name: np.array([True, False]) if g.name == "stem" else np.ones(g.size, bool)
        for g in found
    }
    smaller = Prunable(model, found).cut(masks)
    before, weights = (
        smaller.biased.bias.item(),
        (model.biased.weight[0, 1].item(), model.bare.weight[0, 1].item()),
    )
    result = Prunable(model, found).fold_constants(masks, smaller)
    assert (result.folded, result.left) == (2, 0)
    assert smaller.biased.bias.item() == pytest.approx(before + weights[0] * said, abs=1e-6)
    assert smaller.after.running_mean.item() == pytest.approx(-weights[1] * said, abs=1e-6)


@pytest.mark.parametrize(("gamma", "folded"), [(0.09, True), (-0.09, True), (0.11, False)])
def test_only_channels_near_silence_are_folded(gamma, folded):
    """Of a larger scale the mean is not act(beta)."""
    model = toy(Chain)
    found = find_groups(model)
    masks = {g.name: np.ones(g.size, bool) for g in found}
    masks["stem.0"][2] = False
    with torch.no_grad():
        model.stem[1].weight[2] = gamma
    result = Prunable(model, found).fold_constants(masks, Prunable(model, found).cut(masks))
    assert (result.folded, result.left) == ((1, 0) if folded else (0, 1))


def test_what_is_not_constant_is_left_and_counted():
    """A removed channel without a batch norm says something else at every pixel."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1))
    found = find_groups(model)
    masks = {g.name: np.array([True, False, False, True]) for g in found if g.size == 4}
    smaller = Prunable(model, found).cut(masks)
    before = smaller[2].bias.clone()
    result = Prunable(model, found).fold_constants(masks, smaller)
    assert (result.folded, result.left) == (0, 2) and torch.equal(smaller[2].bias, before)


def test_the_uncut_model_is_untouched_and_a_whole_mask_changes_nothing():
    model = toy(Csp)
    found, masks = plan_of(model, 2.0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    Prunable(model, found).fold_constants(masks, Prunable(model, found).cut(masks))
    whole = {g.name: np.ones(g.size, bool) for g in found}
    same = Prunable(model, found).cut(whole)
    assert Prunable(model, found).fold_constants(whole, same).folded == 0
    assert all(
        torch.equal(v, model.state_dict()[k]) and torch.equal(v, same.state_dict()[k])
        for k, v in state.items()
    )


@pytest.mark.parametrize("cfg", [TINY_REP, "yolov5n", "yolov7-tiny"])
def test_real_models_come_nearer_to_what_they_were(cfg):
    torch.manual_seed(0)
    model = randomised(build_model(cfg, nc=3))
    found, masks = plan_of(model, 1.5)
    silent = silence(model, found, masks)
    smaller = Prunable(silent, found).cut(masks)
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(3))
    wanted, plain = middle(silent, x), middle(Prunable(silent, found).zero_channels(masks), x)
    result = Prunable(silent, found).fold_constants(masks, smaller)
    folded = middle(smaller, x)
    assert result.folded > 0 and result.left == 0
    for want, without, have in zip(wanted, plain, folded, strict=True):
        assert (have - want).abs().mean() < 0.2 * (without - want).abs().mean()
