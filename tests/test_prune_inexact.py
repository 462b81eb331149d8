"""Blocks whose cut cannot equal zeroed channels, and group norms: what is cut, and
what is proved.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_model, load_model, save_model
from models.pruning_rules import detach_channels
from models.registry import BLOCKS
from prune_methods import (
    PRUNERS,
    ChannelGroup,
    Member,
    Prunable,
    find_groups,
    run_preflight,
)
from prune_methods.groups.group_norm import merge_by_group_norm
from prune_methods.groups.inexact import gates_fixed, inexact_blocks
from prune_methods.surgery.cut import largest_difference
from recipes.prune.preflight_report import layer_fates
from tests.preflight_toys import Square, with_row
from tests.prune_toys import randomised


class MeanGate(Square):
    """A gate from the mean over channels: it changes with the number of channels."""

    inexact = "the gate is a mean over channels"

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * detach_channels(8 * y.mean(1, keepdim=True))


class Standardised(Square):
    """Says that it is inexact, and has no cut to hold on to."""

    inexact = "channels are divided by their mean"

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y / (1e-3 + y.abs().mean(1, keepdim=True))


class Broken(MeanGate):
    """An inexact block that must not be cut: the order of its channels is fixed by
    their position.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + y.flip(1)) * detach_channels(8 * y.mean(1, keepdim=True))


class Overflowing(MeanGate):
    """Fails only in what the proof leaves out: infinite as soon as a channel is gone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * detach_channels(y.mean(1, keepdim=True) / max(y.shape[1] - 15, 0) + 1)


class Normed(Square):
    """A 3x3 and a group norm over its output; `pairs` groups."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv, self.norm = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BareNorm(Normed):
    """The same without a scale and a shift."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.norm = nn.GroupNorm(8, channels, affine=False)


class Torn(Normed):
    """Groups of the norm that reach over two layers' channels."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv, self.other = nn.Conv2d(channels, channels - 6, 1), nn.Conv2d(channels, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat((self.conv(x), self.other(x)), 1))


KINDS = (MeanGate, Standardised, Broken, Overflowing, Normed, BareNorm, Torn)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    for block in KINDS:
        monkeypatch.setitem(BLOCKS._items, block.__name__, block)


def detector(block: str):
    torch.manual_seed(0)
    return randomised(build_model(with_row(block)))


def half(found):
    return {g.name: np.arange(g.size) % 2 == 0 for g in found}


@pytest.mark.parametrize("block", ["MeanGate", "Standardised"])
def test_an_inexact_block_is_cut_and_the_rest_proved(block, monkeypatch):
    model = detector(block)
    found, skipped = run_preflight(model)
    names = [g.name for g in found]
    assert names == [f"model.{i}.conv" for i in (0, 1)] + [
        "model.2.conv.conv",
        "model.3.conv",
        "model.4.conv",
    ]
    assert [s.layer for s in skipped] == ["model.5.m.0"]
    smaller = Prunable(model, found).cut(half(found))
    reference = Prunable(model, found).zero_channels(half(found))
    assert largest_difference(smaller, reference) < 1e-4
    real = [
        m(torch.ones(1, 3, 64, 64))[1][0]
        for m in (copy.deepcopy(smaller).eval(), copy.deepcopy(reference).eval())
    ]
    assert not torch.allclose(
        real[0], real[1], atol=1e-5
    )  # what it does differs: without the declaration nothing could be cut
    monkeypatch.delattr(type(model.model[2]), "inexact")
    assert "model.2.conv.conv" not in [g.name for g in find_groups(model)]


def test_what_the_declaration_does_not_cover_still_counts():
    assert "model.2.conv.conv" not in [g.name for g in find_groups(detector("Broken"))]


def test_values_that_are_not_finite_are_found_where_the_proof_looks_away():
    model = detector("Overflowing")
    found, skipped = run_preflight(model)
    reasons = {s.layer: s.reason for s in skipped}
    assert (
        reasons["model.2.conv.conv"]
        == "a cut copy gives outputs of other shapes, or values that are not finite"
    )
    assert "model.3.conv" in [g.name for g in found]
    other = [
        ChannelGroup(
            "model.2.conv.conv",
            16,
            tuple(
                Member(f"model.2.conv.{n}", k, np.arange(16), np.arange(16))
                for n, k in (("conv", "out"), ("bn", "norm"))  # fmt: skip
            )
            + (Member("model.3.conv", "in", np.arange(16), np.arange(16)),),
        )
    ]
    masks = {"model.2.conv.conv": np.arange(16) > 0}
    assert (
        largest_difference(
            Prunable(model, other).cut(masks), Prunable(model, other).zero_channels(masks)
        )
        == math.inf
    )


def test_gates_are_constants_inside_and_themselves_outside():
    model = detector("MeanGate").eval()
    block, x = model.model[2], torch.rand(1, 16, 4, 4)
    gated = block.conv(x) * 8 * block.conv(x).mean(1, keepdim=True)
    with torch.no_grad():
        with gates_fixed(model):
            assert torch.equal(block(x), 0.5 * block.conv(x))
        assert torch.allclose(block(x), gated)
        with gates_fixed(other := detector("Standardised").eval()):
            assert not other.model[2](x).any()
    assert (
        inexact_blocks(model) == {"model.2": "the gate is a mean over channels"}
        and not block._forward_hooks
    )


def test_preflight_names_the_reason():
    model = detector("MeanGate")
    rows = {e.layer: e for e in layer_fates(Prunable.of(model))}
    assert (
        rows["model.2.conv.conv"].detail
        == "read by 1 layer; inexact: the gate is a mean over channels"
    )
    assert (
        rows["model.2.conv.bn"].status == "prunable" and "inexact" in rows["model.2.conv.bn"].detail
    )
    assert "inexact" not in rows["model.1.conv"].detail


@pytest.mark.parametrize(("block", "bundles"), [("Normed", 4), ("BareNorm", 8)])
def test_a_group_norm_loses_whole_groups_exactly(block, bundles, tmp_path):
    model = detector(block)
    if model.model[2].norm.affine:
        nn.init.normal_(model.model[2].norm.weight), nn.init.normal_(model.model[2].norm.bias)
    found = find_groups(model)
    group = next(g for g in found if g.name == "model.2.conv")
    assert group.size == bundles
    smaller = Prunable(model, found).cut(half(found))
    norm = smaller.model[2].norm
    assert (norm.num_groups, norm.num_channels, smaller.model[2].conv.out_channels) == (
        bundles // 2,
        8,
        8,
    )
    assert (
        largest_difference(smaller, Prunable(model, found).zero_channels(half(found))) < 1e-5
    )  # no allowance: statistics are the same
    kept = [c for c in range(16) if c // (16 // bundles) % 2 == 0]
    assert torch.equal(smaller.model[2].conv.weight, model.model[2].conv.weight[kept][:, ::2])
    save_model(smaller, tmp_path / "x.pt")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "x.pt").eval()(x)[0], smaller.eval()(x)[0])


def test_a_bundle_is_worth_the_mean_of_its_channels():
    """Else bundles of 4 would outlive single channels wherever methods rank raw magnitudes."""
    model = detector("Normed")
    found = find_groups(model)
    bundle = next(g for g in found if g.name == "model.2.conv")
    assert (bundle.size, bundle.per_channel) == (4, 4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    worth = Prunable(model, found).scores(PRUNERS["slim"]())
    assert (
        worth["model.2.conv"].tolist() == [0.5] * 4 and worth["model.1.conv"].tolist() == [0.5] * 16
    )


def test_a_group_norm_over_several_layers_channels_stays():
    found, skipped = run_preflight(detector("Torn"))
    assert not [g for g in found if g.name.startswith("model.2.")]
    assert (
        "takes one mean over channels of several groups"
        in {s.layer: s.reason for s in skipped}["model.2.conv"]
    )


def test_bundles_by_hand():
    """Channels 0..5; norm a ties (0, 1), (2, 3), (4, 5) of them, norm b sees them in another order:
    (3, 4), (0, 1).
    """
    norms = {"a": nn.GroupNorm(3, 6), "b": nn.GroupNorm(2, 4)}
    a = Member("a", "norm", np.arange(6), np.arange(6))
    b = Member("b", "norm", np.arange(4), np.array([3, 4, 0, 1]))
    conv = Member("conv", "out", np.arange(6), np.arange(6))
    alone = merge_by_group_norm(ChannelGroup("conv", 6, (conv, a)), norms)
    assert alone.size == 3 and alone.members[0].group_channels.tolist() == [0, 0, 1, 1, 2, 2]
    both = merge_by_group_norm(ChannelGroup("conv", 6, (conv, a, b)), norms)
    assert both.size == 2 and both.members[0].group_channels.tolist() == [0, 0, 1, 1, 1, 1]
    plain = ChannelGroup("conv", 6, (conv,))
    assert merge_by_group_norm(plain, norms) is plain
