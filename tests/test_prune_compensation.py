"""Which compensation goes on: as asked, or the one with the least held-out loss."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.dataset import Batch
from models import build_model
from prune_methods import Prunable
from prune_methods.groups.graph import raw_outputs
from prune_methods.surgery.calibration import Calibration
from prune_methods.surgery.recalibrate import recalibrate_bn
from prune_methods.surgery.repair import KeptMaps, RepairSettings, map_distance, repair
from recipes.prune.calibration import CalibrationSets, UnjudgedBatches, held_out_loss
from recipes.prune.compensation import (
    AS_CUT,
    FOLDED,
    FRESH_BASE,
    RECALIBRATED,
    RECONSTRUCTED,
    REPAIRED,
    Candidate,
    Compensator,
)
from tests.prune_toys import TINY_REP, Chain, Csp, toy
from utils.options.prune import PruneOptions


def calibration(model, first):
    """Return images whose loss is the distance from the uncut model's outputs."""
    images = torch.randint(256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(first))

    def loss(cut, which):
        x = images[which] / 255
        goal = raw_outputs(model(x))
        return (raw_outputs(cut(x)) - goal).square().mean() * len(x)

    return Calibration(images.byte(), loss, 4)


def compensator(model, **options):
    """Return a compensator of a toy with two sets of random images."""
    opt = PruneOptions(recalibrate_batches=1, **options)
    fit, judge = calibration(model, 1), calibration(model, 2)
    loader = [Batch(fit.images, torch.zeros(0, 6), [f"{i}.jpg" for i in range(10)], [])]
    found = Compensator(SimpleNamespace(opt=opt, plain_loader=loader), Prunable.of(model))
    found.__dict__["sets"] = CalibrationSets(fit, judge)
    return found


def silent_cut():
    """Return a model whose first 4 of 8 stem channels are constants, and their masks."""
    model = toy(Chain).eval()
    with torch.no_grad():
        model.stem[1].weight[:4] = 0
    prunable = Prunable.of(model)
    masks = prunable.index.by_group(prunable.index.all_kept())
    masks["stem.0"][:4] = False
    return model, masks, prunable.cut(masks)


@pytest.mark.parametrize(
    ("how", "stages"),
    [
        ("none", [AS_CUT]),
        ("fold", [AS_CUT, FOLDED]),
        ("recalibrate", [AS_CUT, RECALIBRATED]),
        ("reconstruct", [AS_CUT, RECONSTRUCTED]),
        ("auto", [AS_CUT, FOLDED, RECALIBRATED, RECONSTRUCTED]),
    ],
)
def test_each_way_is_tried_as_asked(how, stages):
    model, masks, smaller = silent_cut()
    before = {name: value.clone() for name, value in smaller.state_dict().items()}
    rows = []
    compensate = compensator(model, compensate=how)
    found = compensate(masks, smaller, lambda stage, _: rows.append(stage))
    assert rows == stages
    assert bool(compensate.fits) == (RECONSTRUCTED in stages)
    if how != "auto":
        assert found.stage == stages[-1]
    assert all(torch.equal(value, before[name]) for name, value in smaller.state_dict().items())


def test_auto_takes_the_least_held_out_loss():
    model, masks, smaller = silent_cut()
    compensate = compensator(model)
    losses = {}

    def note(stage, tried):
        with torch.no_grad():
            judge = compensate.sets.judge
            losses[stage] = float(sum(judge.loss(tried.eval(), s) for s in judge.slices()))

    found = compensate(masks, smaller, note)
    assert found.stage == min(losses, key=lambda stage: losses[stage])
    assert found.loss == pytest.approx(losses[found.stage] / 10)
    assert found.loss < 0.2 * losses[AS_CUT] / 10


def test_where_nothing_helps_the_cut_itself_goes_on():
    model, masks, smaller = silent_cut()
    compensate = compensator(model)
    fit = compensate.sets.fit
    with torch.no_grad():
        wanted = smaller.eval()(fit.images[:1] / 255)

    def loss(cut, which):  # the cut model as it is has none
        return (raw_outputs(cut(fit.images[:1] / 255)) - wanted).square().sum()

    compensate.__dict__["sets"] = CalibrationSets(fit, Calibration(fit.images[:4], loss, 4))
    found = compensate(masks, smaller)
    assert found.stage == AS_CUT and found.model is smaller


def test_a_repair_that_does_harm_is_dropped(monkeypatch):
    model, masks, smaller = silent_cut()
    compensate = compensator(model)
    start = compensate(masks, smaller)

    def spoil(self, masks, model, images, loss, settings):
        nn.init.normal_(model.out.weight)

    monkeypatch.setattr(Prunable, "repair", spoil)
    compensate.__dict__["output_loss"] = None
    rows = []
    assert compensate.repaired(masks, start, lambda stage, _: rows.append(stage)) is start
    assert rows == [REPAIRED]


@pytest.mark.parametrize("how", ["none", "fold", "recalibrate"])
def test_no_repair_where_none_is_asked_for(how):
    model, masks, smaller = silent_cut()
    start = Candidate(AS_CUT, smaller, 1.0)
    assert compensator(model, compensate=how).repaired(masks, start) is start
    assert compensator(model, repair_steps=0).repaired(masks, start) is start


def half_cut(kind):
    model = toy(kind)
    prunable = Prunable.of(model)
    keep = prunable.index.all_kept()
    keep[:-1:3] = False
    masks = prunable.index.by_group(keep)
    return prunable, masks, prunable.cut(masks)


def test_maps_pair_up_with_the_kept_channels_of_the_uncut_model():
    prunable, masks, smaller = half_cut(Csp)
    zeroed = prunable.zero_channels(masks).eval()
    maps = KeptMaps(prunable.index, masks, smaller.eval())
    maps.model = zeroed  # the cut model equals the one with zeroed channels
    x = torch.rand(2, 3, 16, 16)
    with maps.reading(list(maps.kept)) as pairs, torch.no_grad():
        zeroed(x), smaller(x)
    assert len(pairs) == 7
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert float(map_distance(pairs)) < 1e-8


def test_distance_of_maps_by_hand():
    goal = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)  # variance 1
    assert float(map_distance([(goal + 3, goal), (goal, goal)])) == pytest.approx(4.5)


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_a_repair_comes_closer_and_leaves_the_uncut_model_and_statistics(features):
    prunable, masks, smaller = half_cut(Csp)
    x = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    teacher = {name: value.clone() for name, value in prunable.model.state_dict().items()}
    mean = smaller.join[1].running_mean.clone()

    def distance(ours, theirs):
        return (raw_outputs(ours)[0] - raw_outputs(theirs)[0]).square().mean()

    def lost():
        with torch.no_grad():
            return float(distance(smaller.eval()(x[0]), prunable.model.eval()(x[0])))

    before = lost()
    settings = RepairSettings(40, lr=1e-2, features=features)
    repair(KeptMaps(prunable.index, masks, smaller), x, distance, settings)
    assert lost() < 0.5 * before
    assert torch.equal(smaller.join[1].running_mean, mean)
    assert all(torch.equal(v, teacher[n]) for n, v in prunable.model.state_dict().items())
    assert all(p.grad is None for p in prunable.model.parameters())


@pytest.mark.parametrize(("stale", "rows"), [(True, [FRESH_BASE]), (False, [])])
def test_a_base_with_stale_statistics_gets_a_row_of_its_own(stale, rows):
    """The loss is the distance from the model with the right statistics."""
    right = toy(Chain).eval()
    compensate = compensator(right)
    loader = [SimpleNamespace(images=compensate.sets.fit.images)]
    recalibrate_bn(right, loader, 1)
    wrong = copy.deepcopy(right)
    if stale:
        wrong.stem[1].running_mean += 1
    tried = compensator(wrong)
    tried.__dict__["sets"] = CalibrationSets(calibration(right, 1), calibration(right, 2))
    found = []
    tried.check_base(lambda stage, _: found.append(stage))
    assert found == rows


def test_maps_alone_are_followed_too():
    """Outputs without a loss: the steps bring the feature maps closer."""
    prunable, masks, smaller = half_cut(Csp)
    x = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    maps = KeptMaps(prunable.index, masks, smaller.eval())

    def lost():
        with maps.reading(list(maps.kept)) as pairs, torch.no_grad():
            prunable.model.eval()(x[0]), smaller(x[0])
        return float(map_distance(pairs))

    before = lost()
    repair(maps, x, lambda ours, theirs: 0 * raw_outputs(ours)[0].sum(), RepairSettings(40))
    assert lost() < 0.7 * before


def test_a_head_without_anchors_is_compared_by_its_maps_and_nan_never_wins():
    model, masks, smaller = silent_cut()
    model.head = SimpleNamespace(nl=1)
    compensate = compensator(model)
    maps = torch.tensor([1.0, -1.0]).view(1, 1, 2)
    ours, theirs = SimpleNamespace(raw=[maps + 2]), SimpleNamespace(raw=[maps])
    assert float(compensate.output_loss(ours, theirs)) == pytest.approx(4.0)
    nan = Calibration(compensate.sets.fit.images, lambda model, which: torch.tensor(torch.nan))
    assert held_out_loss(smaller, nan) == float("inf")


def test_nothing_is_fitted_to_the_images_that_judge():
    model, _, _ = silent_cut()
    compensate = compensator(model)
    sets = compensate.sets
    compensate.__dict__["sets"] = CalibrationSets(sets.fit, sets.judge, frozenset({"1.jpg"}))
    [batch] = compensate.batches
    kept = [0, *range(2, 10)]
    assert torch.equal(batch.images, sets.fit.images[kept])
    everything = frozenset(f"{i}.jpg" for i in range(10))
    assert list(UnjudgedBatches(compensate.run.plain_loader, everything)) == []


@pytest.mark.parametrize(("total", "fit", "judge"), [(1, 1, 1), (2, 1, 1), (12, 9, 3)])
def test_a_training_set_is_split_in_two(total, fit, judge):
    x = torch.randint(256, (total, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    files = [f"{i}.jpg" for i in range(total)]
    targets = torch.tensor([[i, 0, 0.5, 0.5, 0.3, 0.3] for i in range(total)])
    parts = [slice(i, min(i + 5, total)) for i in range(0, total, 5)]
    batches = [
        Batch(x[p], targets[p] - targets[p.start] * torch.eye(6)[0], files[p], []) for p in parts
    ]
    loader = Loader(batches, total)
    run = SimpleNamespace(plain_loader=loader, opt=PruneOptions(imgsz=64))
    sets = CalibrationSets.of(run, build_model(TINY_REP))
    assert (len(sets.fit), len(sets.judge)) == (fit, judge)
    assert torch.equal(sets.fit.images, x[:fit]) and torch.equal(sets.judge.images, x[-judge:])
    assert sets.judged == (frozenset(files[-judge:]) if total > 1 else frozenset())
    assert list(UnjudgedBatches(loader, sets.judged))  # a repair has something to walk through


class Loader(list):
    """Batches with the length of their data set."""

    def __init__(self, batches, total):
        super().__init__(batches)
        self.dataset = range(total)
