"""The code of docs/custom_pruner.md and docs/custom_penalty.md, run as it stands there."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from prune_methods import (
    PRUNERS,
    ActivationCriterion,
    EvidenceSource,
    GradientCriterion,
    Limits,
    Prunable,
    Target,
    activation_evidence,
    gradient_evidence,
)
from prune_methods.sparsity.penalties import PENALTIES, make_penalty
from prune_methods.sparsity.step_sizes import StepSizes
from tests.conftest import ROOT
from tests.prune_toys import Chain, Csp, toy


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


@pytest.fixture(scope="module")
def methods():
    before = {registry: dict(registry._items) for registry in (PRUNERS, PENALTIES)}
    for code in blocks("custom_pruner.md") + blocks("custom_penalty.md"):
        if "register(" in code:
            exec(code, {"__name__": "docs"})
    yield [name for name in PRUNERS if name.startswith("my_")]
    for registry, items in before.items():
        registry._items = items


def losses(model, per_image):
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for part in x.split(1 if per_image else 2):
        yield mean_square(model(part))


def mean_square(outputs):
    return sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs]))


def source_for(prunable, criterion):
    if isinstance(criterion, GradientCriterion):
        return EvidenceSource(
            lambda masks: gradient_evidence(
                prunable.index.of(prunable.zero_channels(masks)), criterion, losses
            )
        )
    if isinstance(criterion, ActivationCriterion):
        images = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
        return EvidenceSource(
            lambda masks: activation_evidence(
                prunable.index.of(prunable.zero_channels(masks)), criterion, images
            )
        )
    return None


def test_every_method_of_the_page_prunes(methods):
    assert methods == ["my_slim", "my_gradient", "my_activation", "my_largest_weight"]
    for name in methods:
        criterion = PRUNERS[name]()
        prunable = Prunable.of(toy(Csp)).for_criterion(criterion)
        source = source_for(prunable, criterion)
        plan = prunable.search(criterion, Target(2.0, imgsz=32), Limits(2), source=source)
        assert plan.met, name
        prunable.prune(plan, 32)


def test_the_python_of_the_page_runs():
    code = next(code for code in blocks("custom_pruner.md") if "Prunable.of(model)" in code)
    model = toy(Csp)
    images = torch.rand(2, 3, 32, 32)

    def loss(maps, targets):
        return mean_square(maps), {}

    names = {"model": model, "loss": loss, "batches": [(images, None)]}
    exec(code.replace("model(images).raw", "model(images)"), names)
    assert names["plan"].met
    kept = sum(int(mask.sum()) for mask in names["plan"].masks.values())
    assert kept < sum(g.size for g in names["prunable"].groups)


def test_the_largest_weight_of_the_page_by_hand(methods):
    model = toy(Chain)
    prunable = Prunable.of(model)
    found = prunable.scores(PRUNERS["my_largest_weight"]())
    for group in prunable.groups:
        names = [m.name for m in group.members if m.kind in {"out", "depthwise"}]
        weights = [model.get_submodule(name).weight.detach().double() for name in names]
        largest = sum(weight.abs().flatten(1).amax(1) for weight in weights)
        np.testing.assert_allclose(found[group.name], largest / largest.mean())


def test_the_penalty_of_the_page_pulls_and_forecasts(methods):
    model = toy(Csp)
    penalty = make_penalty("my_l2", Prunable.of(model).index)
    penalty.bind(model)
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for gamma in gammas:
        gamma.grad = torch.ones_like(gamma)
    penalty.add(0.5)
    for gamma in gammas:
        torch.testing.assert_close(gamma.grad, 1 + 0.5 * gamma.detach())
    steps = StepSizes(np.full(100, 0.01), np.ones(100))
    assert penalty.expected_gamma(steps, 2.0, 1.0) == pytest.approx((np.exp(-2), np.exp(-2)))
