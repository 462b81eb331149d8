"""Routes for methods that are no sum of a saliency: whole slices (FPGM), and outputs on images."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prune_methods import (
    PRUNERS,
    ActivationCriterion,
    EvidenceSource,
    GradientCriterion,
    GroupCriterion,
    Limits,
    Prunable,
    Target,
    activation_evidence,
)
from prune_methods.criteria.fpgm import distances
from recipes.prune.gradients import evidence_source
from tests.prune_toys import Chain, Csp, run_of, toy
from utils.errors import UserError
from utils.registry import Registry, import_files_of, registered_names

SEEN: list[str] = []
PRUNERS_OF_TEST = Registry("method of a test")


class MeanActivation(ActivationCriterion):
    """Mean of |output| of the batch norms."""

    def collect(self, batch):
        return {name: output.abs().mean((0, 2, 3)) for name, output in batch.outputs.items()}


class Recorder(GroupCriterion):
    """Keeps what it is asked; the score is the channel's place."""

    kinds = frozenset({"out", "in", "norm"})

    def __init__(self):
        super().__init__()
        self.asked = {}

    def score_group(self, group, weights, keep):
        self.asked[group.name] = weights, keep
        return np.flatnonzero(keep).astype(float)


def test_distances_by_hand():
    points = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    np.testing.assert_allclose(distances(points), [[0, 5, 3], [5, 0, 4], [3, 4, 0]], atol=1e-12)


def test_fpgm_ranks_by_the_sum_of_distances():
    """The filter amid the others goes first, though another one is smaller."""
    model = toy(Chain).double()
    with torch.no_grad():
        weight = model.mid[0].weight
        weight += 1
        weight[5] *= 0.3
        weight[0] = weight[1:5].mean(0)
    prunable = Prunable.of(model)
    found = prunable.scores(PRUNERS["fpgm"]())["mid.0"]
    filters = model.mid[0].weight.detach().flatten(1)
    reference = torch.cdist(filters, filters).sum(1)
    np.testing.assert_allclose(found, reference / reference.mean(), rtol=1e-6)
    assert found.argmin() == 0 and prunable.scores(PRUNERS["l1"]())["mid.0"].argmin() == 5


def test_fpgm_sees_the_masked_model():
    """Distances to filters that are gone, and along inputs that are gone, do not count."""
    model = toy(Chain).double()
    prunable = Prunable.of(model)
    masks = {g.name: np.ones(g.size, dtype=bool) for g in prunable.groups}
    masks["stem.0"][[1, 4]] = False
    masks["mid.0"][2] = False
    found = prunable.scores(PRUNERS["fpgm"](), masks)["mid.0"]
    left = torch.from_numpy(np.flatnonzero(masks["mid.0"]))
    filters = model.mid[0].weight.detach()[left][:, torch.from_numpy(masks["stem.0"])].flatten(1)
    reference = torch.cdist(filters, filters).sum(1)
    np.testing.assert_allclose(found[left], reference / reference.mean(), rtol=1e-6)
    assert np.isinf(found[2])


def test_equal_filters_give_finite_scores_and_the_target_is_met():
    model = toy(Csp)
    nn.init.ones_(model.stem[0].weight)
    prunable = Prunable.of(model)
    assert (prunable.scores(PRUNERS["fpgm"]())["stem.0"] == 0).all()
    plan = prunable.search(PRUNERS["fpgm"](), Target(2.0, imgsz=32), Limits(2))
    assert plan.met
    prunable.prune(plan, 32)


def test_slices_of_every_kind_with_what_is_gone_at_zero():
    """Filters, columns and gammas of the channels of `stem`; the net is 3 -> 8 -> 6 -> 4."""
    model = toy(Chain).double()
    prunable, criterion = Prunable.of(model), Recorder()
    masks = {g.name: np.ones(g.size, dtype=bool) for g in prunable.groups}
    masks["stem.0"][3] = False
    masks["mid.0"][5] = False
    scores = prunable.scores(criterion, masks)
    weights, keep = criterion.asked["stem.0"]
    by_kind = {w.shape: w for w in weights}
    filters = model.stem[0].weight.detach().flatten(1).numpy().copy()
    columns = model.mid[0].weight.detach().transpose(0, 1).numpy().copy()
    columns[:, 5] = 0
    for table in (filters, columns):
        table[3] = 0
    np.testing.assert_array_equal(by_kind[8, 27], filters)
    np.testing.assert_array_equal(by_kind[8, 54], columns.reshape(8, -1))
    assert by_kind[8, 1][3] == 0 and keep.tolist() == [True] * 3 + [False] + [True] * 4
    assert scores["stem.0"].tolist() == [0, 1, 2, np.inf, 4, 5, 6, 7]


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n, 3, 32, 32, generator=generator, dtype=torch.float64) for n in sizes]


def test_outputs_of_the_batch_norms_are_collected_as_a_mean_over_images():
    model = toy(Chain).double().train()
    prunable, batches = Prunable.of(model), images(2, 1)
    tables = activation_evidence(prunable.index, MeanActivation(), batches)
    with torch.no_grad():
        net = model.eval()
        before = net.stem[1](net.stem[0](torch.cat(batches)))
    expected = before.abs().mean((0, 2, 3))
    np.testing.assert_allclose(tables["stem.1"], expected, rtol=1e-9)
    scores = prunable.scores(MeanActivation(), evidence=tables)["stem.0"]
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-9)


def test_a_method_of_outputs_prunes_and_looks_anew_at_the_masked_model():
    model = toy(Csp)
    prunable, looks = Prunable.of(model), []

    def collect(masks):
        index = prunable.index.of(prunable.zero_channels(masks))
        looks.append(sum(int(m.sum()) for m in masks.values()))
        return activation_evidence(index, MeanActivation(), [x.float() for x in images(2)])

    source = EvidenceSource(collect, every=10)
    plan = prunable.search(MeanActivation(), Target(2.0, imgsz=32), Limits(2), source=source)
    assert plan.met and len(looks) > 1 and looks == sorted(looks, reverse=True)
    prunable.prune(plan, 32)


def test_the_recipe_gives_it_training_images():
    model, criterion = toy(Chain), MeanActivation()
    opt = SimpleNamespace(calib_batches=2, recalibrate_batches=0, recalib_every=7)
    opt.min_channels, opt.max_ratio, opt.round_to, opt.finetune_hyp = 4, 1.0, 1, "finetune"
    batches = [SimpleNamespace(images=(x * 255).byte()) for x in images(2, 1, 3)]
    prunable = Prunable.of(model)
    source = evidence_source(run_of(opt, batches), prunable, criterion)
    assert source is not None and source.every == 7
    whole = prunable.index.by_group(prunable.index.all_kept())
    seen = [b.images.float() / 255 for b in batches[:2]]
    expected = activation_evidence(prunable.index, criterion, seen)
    for name, table in source.collect(whole).items():
        np.testing.assert_array_equal(table, expected[name])


@pytest.mark.parametrize("wrong", [{}, {"stem.1": torch.ones(3)}, None])
def test_what_collect_returns_is_checked(wrong):
    class Wrong(MeanActivation):
        def collect(self, batch):
            return super().collect(batch) | wrong if wrong else wrong

    with pytest.raises(UserError, match="Wrong: collect"):
        activation_evidence(Prunable.of(toy(Chain).double()).index, Wrong(), images(1))


@pytest.mark.parametrize("kind", [ActivationCriterion, GradientCriterion])
def test_without_data_a_method_of_data_says_what_is_missing(kind):
    chosen = MeanActivation() if kind is ActivationCriterion else PRUNERS["group_taylor"]()
    with pytest.raises(UserError, match="hand a `source` to Prunable.search"):
        Prunable.of(toy(Chain)).search(chosen, Target(2.0, imgsz=32))


def test_a_file_is_found_in_criteria_and_in_its_old_place(tmp_path, monkeypatch):
    """The same walk that prune_methods makes, on a package of the same shape."""
    package = tmp_path / "dropped_methods"
    (package / "criteria").mkdir(parents=True)
    for folder in (package, package / "criteria"):
        (folder / "__init__.py").touch()
    code = "SEEN.append(__name__)\n\n\n@PRUNERS.register('{}')\nclass Method: ...\n"
    head = "from tests.test_prune_contracts import SEEN, PRUNERS_OF_TEST as PRUNERS\n"
    (package / "old_place.py").write_text(head + code.format("old"))
    (package / "criteria" / "new_place.py").write_text(head + code.format("new"))
    monkeypatch.syspath_prepend(tmp_path)
    import_files_of(importlib.import_module("dropped_methods"))
    assert sorted(SEEN) == ["dropped_methods.criteria.new_place", "dropped_methods.old_place"]
    assert sorted(PRUNERS_OF_TEST) == ["new", "old"]
    assert sorted(registered_names(package, "PRUNERS")) == ["new", "old"]


def test_pruning_by_a_plan_verifies_the_cut():
    """`Prunable.prune` refuses a model that costs other MACs than the plan says."""
    prunable = Prunable.of(toy(Csp))
    plan = prunable.search(PRUNERS["lamp"](), Target(2.0, imgsz=32), Limits(2))
    with pytest.raises(AssertionError, match="predicted"):
        prunable.prune(replace(plan, macs=plan.macs + 1), 32)
