"""What one channel frees, against masks with and without it; scores per cost; gates."""

import numpy as np
import pytest
import torch

from models import build_model
from prune_methods import PRUNERS, ChannelIndex, Pace, Prunable, Target, find_groups
from prune_methods.criteria.fisher import gate_evidence
from prune_methods.criteria.scoring import GroupScores
from prune_methods.groups.graph import raw_outputs
from prune_methods.search.cost import Cost
from prune_methods.search.latency import TimeModel
from prune_methods.search.marginal import (
    BYTES,
    marginal_both,
    marginal_bytes,
    marginal_macs,
    marginal_time,
)
from tests.prune_toys import TINY_REP, Chain, Csp, randomised, toy

SIZE = 32


def half_masked(model):
    """Return the cost of a model and a mask without every fourth channel."""
    cost = Cost(ChannelIndex(model, find_groups(model)), SIZE)
    keep = cost.index.all_kept()
    keep[:-1:4] = False
    return cost, keep


def yolo():
    """Return a YOLO with RepConv branches, which cost nothing once deployed."""
    return randomised(build_model(TINY_REP))


@pytest.mark.parametrize("kind", [Chain, Csp, yolo])
def test_macs_are_those_of_the_mask_without_the_channel(kind):
    cost, keep = half_masked(yolo() if kind is yolo else toy(kind))
    freed = marginal_macs(cost)(keep)
    for channel in np.flatnonzero(keep[:-1]):
        without = keep.copy()
        without[channel] = False
        assert freed[channel] == cost.macs(keep) - cost.macs(without)


def test_time_is_that_of_the_model_of_time():
    cost, keep = half_masked(toy(Csp))
    terms = np.random.default_rng(0).uniform(0.1, 1, (4, len(cost.layers)))
    times = TimeModel(cost, cost.index.all_kept(), terms)
    freed = marginal_time(times)(keep)
    for channel in np.flatnonzero(keep[:-1]):
        without = keep.copy()
        without[channel] = False
        assert freed[channel] == pytest.approx(times(keep) - times(without), rel=1e-9)


def test_bytes_and_both_by_hand():
    cost, _ = half_masked(toy(Chain))
    keep = cost.index.all_kept()
    pixels = SIZE * SIZE
    size = marginal_bytes(cost)(keep)
    assert (size == BYTES * pixels).all()  # one map of each channel
    macs = pixels * 9 * (3 + 6)  # a stem channel: made from 3 and read by 6
    assert marginal_both(cost)(keep)[0] == pytest.approx((macs * BYTES * pixels) ** 0.5)


def test_scores_are_divided_by_what_the_channel_frees():
    model = toy(Csp)
    prunable, criterion = Prunable.of(model), PRUNERS["l1"]()
    total = prunable.index.total

    def first_step(costly):
        """Return the flat channels that go first where some are costly."""
        cost, gone = np.where(costly, 1e9, 1.0), []
        pace = Pace(1, per=lambda keep: cost)

        def note(step, masks):
            gone.extend(np.flatnonzero(~prunable.index.flatten(masks)))

        prunable.search(criterion, Target(1.2, imgsz=SIZE), pace=pace, on_step=note)
        return gone

    low = np.arange(total) < total // 2
    assert len(first_step(low)) and all(channel < total // 2 for channel in first_step(low))
    assert len(first_step(~low)) and all(channel >= total // 2 for channel in first_step(~low))


def losses(model, per_image):
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for part in x.split(1 if per_image else 3):
        yield raw_outputs(model(part)).square().mean()


def test_a_gate_is_a_factor_of_the_channel():
    """The score is the mean square of the derivative by a factor between layers, not of weights."""
    model = toy(Chain).eval()
    index = ChannelIndex(model, find_groups(model))
    criterion = PRUNERS["group_fisher"]()
    evidence = gate_evidence(index, criterion, losses)
    gate, squares = torch.ones(1, 8, 1, 1, requires_grad=True), []
    handle = model.stem.register_forward_hook(lambda m, i, output: output * gate)
    for loss in losses(model, True):
        squares.append(torch.autograd.grad(loss, gate)[0].flatten().square())
    handle.remove()
    wanted = torch.stack(squares).mean(0).double().numpy()
    np.testing.assert_allclose(evidence["stem.0"], wanted, rtol=1e-4)
    scores = GroupScores(index, criterion, evidence).scores(index.all_kept())
    np.testing.assert_allclose(scores[index.span(0)], wanted, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())
