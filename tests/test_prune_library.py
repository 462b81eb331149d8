"""Torch-Pruning as the reference, wherever it is right: its scores, and the channels its own loop
keeps at our schedule.

Not compared, since the library is wrong there (docs/pruning.md): depthwise weights, which it leaves
out of every score; Taylor's gammas, which it forgets; a Hessian of several images, of which it
keeps the last. `random` draws from another generator.
"""

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from models import build_model
from prune_methods import (
    PRUNERS,
    ChannelIndex,
    GradientCriterion,
    Limits,
    Pace,
    Prunable,
    Target,
    find_groups,
    gradient_evidence,
)
from prune_methods.groups.graph import raw_outputs
from tests.prune_toys import Csp, source_of, toy

NORM = tp.importance.GroupMagnitudeImportance
IMPORTANCES = {
    "l1": NORM(p=1, group_reduction="mean", normalizer="mean"),
    "group_norm": NORM(p=2, group_reduction="mean", normalizer="mean"),
    "lamp": tp.importance.LAMPImportance(p=2, group_reduction="mean"),
    "group_sl": NORM(p=2, group_reduction="mean", normalizer="max"),
    "group_reg": NORM(p=2, group_reduction="mean", normalizer="mean"),
    "slim": tp.importance.BNScaleImportance(group_reduction="mean", normalizer=None),
    "group_slim": tp.importance.BNScaleImportance(group_reduction="mean", normalizer=None),
    "group_taylor": tp.importance.GroupTaylorImportance(group_reduction="mean", normalizer=None),
    "group_hessian": tp.importance.GroupHessianImportance(group_reduction="mean", normalizer=None),
}


def example(method: str) -> nn.Module:
    """A CSP block without what the library gets wrong."""
    model = toy(Csp)
    model.wise = nn.Identity()
    if method == "group_taylor":
        for unit in (model.stem, model.left, model.right, model.inner, model.join, model.merge):
            unit[1] = nn.Identity()
    return model


def loss_of(model: nn.Module) -> torch.Tensor:
    """Of a single image, which the library's Hessian gets right."""
    return (
        model(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)))[0]
        .square()
        .sum()
    )


def our_evidence(model, found, criterion):
    if not isinstance(criterion, GradientCriterion):
        return None
    return gradient_evidence(ChannelIndex(model, found), criterion, lambda m, _: [loss_of(m)])


def give_gradients(model: nn.Module, importance: tp.importance.Importance) -> None:
    """One pass, which the library cuts along with the weights."""
    model.eval().zero_grad()
    loss_of(model).backward()
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        importance.accumulate_grad(model)


def library_pruner(model, importance, ignored):
    """Its own loop with the schedule of the published runs: 0.5 % of the channels a step."""
    return tp.pruner.BasePruner(
        model,
        (torch.rand(1, 3, 64, 64),),
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=200,
        ignored_layers=ignored,
        output_transform=raw_outputs,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


@pytest.mark.parametrize("method", list(IMPORTANCES))
def test_scores_equal_the_library(method):
    model, importance = example(method), IMPORTANCES[method]
    found, criterion = find_groups(model), PRUNERS[method]()
    ours = Prunable(model, found).scores(criterion, evidence=our_evidence(model, found, criterion))
    give_gradients(model, importance)
    graph = tp.DependencyGraph().build_dependency(model, (torch.rand(1, 3, 32, 32),))
    names = {m: n for n, m in model.named_modules()}
    compared = 0
    for group in graph.get_all_groups(ignored_layers=[model.out]):
        made = [names[item.dep.target.module] for item in group if item.dep.target.module in names]
        np.testing.assert_allclose(
            importance(group).detach().numpy(), ours[next(n for n in ours if n in made)], rtol=2e-5
        )
        compared += 1
    assert compared == len(ours) == 5


@pytest.mark.parametrize("method", list(IMPORTANCES))
def test_loop_keeps_the_channels_of_the_library_loop(method):
    """Until just before it would empty a group, which it then leaves alone without a word."""
    model, importance = example(method), IMPORTANCES[method]
    found, criterion = find_groups(model), PRUNERS[method]()
    gathered, steps = our_evidence(model, found, criterion), 60
    measure = None if gathered is None else lambda masks: gathered
    plan = Prunable(model, found).search(
        criterion,
        Target(1e9, imgsz=32),
        limits=Limits(1),
        pace=Pace(max_steps=steps),
        source=source_of(measure),
    )
    ours = Prunable(model, found).cut(plan.masks)
    give_gradients(model, importance)
    pruner = library_pruner(model, importance, [model.out])
    for _ in range(steps):
        pruner.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), model.state_dict().values(), strict=True)
    )
    total = sum(g.size for g in found)
    assert sum(m.sum() for m in plan.masks.values()) == int(total * (1 - steps / 200))


@pytest.mark.parametrize(
    ("cfg", "steps"),
    [("yolov5n", 6), ("yolov7-tiny", 6), pytest.param("yolov7-tiny", 100, marks=pytest.mark.slow)],
)
def test_whole_models_too(cfg, steps):
    torch.manual_seed(0)
    model = build_model(cfg, nc=2)
    found = find_groups(model)
    plan = Prunable(model, found).search(
        PRUNERS["lamp"](), Target(1e9, imgsz=64), limits=Limits(1), pace=Pace(max_steps=steps)
    )
    ours = Prunable(model, found).cut(plan.masks)
    pruner = library_pruner(model, IMPORTANCES["lamp"], list(model.head.m))
    for _ in range(steps):
        pruner.step()
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert sum(int((~m).sum()) for m in plan.masks.values()) > 10 * steps
