"""group_taylor and group_hessian: gradients on real losses, against references of three lines and
against each other.
"""

import numpy as np
import pytest
import torch
from torch import nn

from prune_methods import (
    PRUNERS,
    ChannelIndex,
    EvidenceSource,
    Limits,
    Pace,
    Prunable,
    Target,
    find_groups,
    gradient_evidence,
)
from recipes.prune.gradients import single_images
from tests.prune_toys import Chain, Csp, Rep, source_of, toy
from utils.errors import UserError

METHODS = ["group_taylor", "group_hessian"]


def pictures(batches=3, size=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, 16, 16, generator=generator) for _ in range(batches)]


def outputs(model, x):
    found = model(x)
    return found[0] if isinstance(found, list) else found


def losses(model, per_image):
    """Squared distance from a fixed pattern, summed over the images as the detection loss is."""
    for batch in pictures():
        for part in batch.double().split(1) if per_image else [batch.double()]:
            y = outputs(model, part)
            yield (
                (y - torch.linspace(-1, 1, y[0].numel()).double().view(y[0].shape))
                .square()
                .mean((1, 2, 3))
                .sum()
            )


def evidence(model, method, masks=None):
    found = find_groups(model)
    criterion = PRUNERS[method]()
    return gradient_evidence(
        ChannelIndex(
            model if masks is None else Prunable(model, found).zero_channels(masks), found
        ),
        criterion,
        losses,
    )


def scored(model, method, masks=None):
    return Prunable(model, find_groups(model)).scores(
        PRUNERS[method](), masks, evidence(model, method, masks)
    )


def gradients(model, per_image):
    """The slow way: backward, then read .grad; one {name: gradient} a pass."""
    for loss in losses(model.eval(), per_image):
        model.zero_grad()
        loss.backward()
        yield {name: p.grad.clone() for name, p in model.named_parameters()}


def mid_mean(table):
    """Outputs of mid, gamma, inputs of out; mean over the three, and not divided by the group's
    mean.
    """
    parts = [
        table["mid.0.weight"].sum((1, 2, 3)),
        table["mid.1.weight"],
        table["out.weight"].sum((0, 2, 3)),
    ]
    return torch.stack(parts).mean(0).numpy()


def test_taylor_equals_the_reference():
    model = toy(Chain).double()
    found = scored(model, "group_taylor")["mid.0"]
    passes, w = list(gradients(model, False)), {n: p.detach() for n, p in model.named_parameters()}
    assert len(passes) == 3
    np.testing.assert_allclose(
        found, mid_mean({n: sum((w[n] * g[n]).abs() for g in passes) / 3 for n in w}), rtol=1e-9
    )


def test_hessian_equals_the_reference():
    model = toy(Chain).double()
    found = scored(model, "group_hessian")["mid.0"]
    passes, w = list(gradients(model, True)), {n: p.detach() for n, p in model.named_parameters()}
    assert len(passes) == 12  # the library's own keeps the last sample alone
    squares = {n: w[n] ** 2 * torch.stack([g[n] ** 2 for g in passes]).mean(0) for n in w}
    np.testing.assert_allclose(found, mid_mean(squares), rtol=1e-9)
    last_alone = {n: w[n] ** 2 * passes[-1][n] ** 2 for n in w}
    assert not np.allclose(found, mid_mean(last_alone), rtol=1e-2)


def test_contributions_by_hand():
    w, g = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 0.5, 4.0])
    assert PRUNERS["group_taylor"]().contribution(w, g).tolist() == [6.0, 0.5, 2.0]
    assert PRUNERS["group_hessian"]().contribution(w, g).tolist() == [36.0, 0.25, 4.0]


def fixed_losses(rows):
    """Losses whose gradient with respect to gamma of mid are the rows."""

    def made(model, per_image):
        for row in rows:
            yield (model.mid[1].weight * torch.tensor(row, dtype=torch.float64)).sum()

    return made


def of_gammas(method, rows):
    model = toy(Chain).double()
    nn.init.ones_(model.mid[1].weight)
    found = [g for g in find_groups(model) if g.name == "mid.0"]
    return gradient_evidence(ChannelIndex(model, found), PRUNERS[method](), fixed_losses(rows))[
        "mid.1"
    ]


def test_taylor_does_not_let_batches_cancel_and_hessian_weighs_outliers():
    rows = [[3.0, 1.0, 1.0, 0, 0, 0], [-3.0, 1.0, -5.0, 0, 0, 0]]
    np.testing.assert_allclose(
        of_gammas("group_taylor", rows), [3, 1, 3, 0, 0, 0]
    )  # |w * sum g| would be 0, 2, 4
    np.testing.assert_allclose(
        of_gammas("group_hessian", rows), [9, 1, 13, 0, 0, 0]
    )  # tells 0 from 2, which Taylor ties


def test_methods_tell_what_magnitude_cannot():
    model = toy(Chain).double()
    with torch.no_grad():
        model.out.weight[:, 2] = 1e-6
        model.mid[0].weight[2] *= 50  # a large filter that nobody reads
    for method in METHODS:
        assert scored(model, method)["mid.0"].argmin() == 2
    assert (
        Prunable(model, find_groups(model)).scores(PRUNERS["group_norm"]())["mid.0"].argmax() == 2
    )


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_gammas_count(method):
    # the library tests the wrong function and leaves them out
    model = toy(Chain).double()
    found = evidence(model, method)
    assert {"stem.1", "mid.1"} <= set(found) and (found["mid.1"] > 0).all()
    without = {name: np.zeros_like(t) if name == "mid.1" else t for name, t in found.items()}
    criterion, all_groups = PRUNERS[method](), find_groups(model)
    changed = Prunable(model, all_groups).scores(criterion, evidence=without)["mid.0"]
    assert not np.allclose(
        changed, Prunable(model, all_groups).scores(criterion, evidence=found)["mid.0"], rtol=1e-2
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_a_masked_model_scores_as_the_cut_one(kind, method):
    model = toy(kind).double()
    found = find_groups(model)
    masks = {g.name: np.arange(g.size) % 3 > 0 for g in found}
    masked = scored(model, method, masks)
    cut = scored(Prunable(model, found).cut(masks).double(), method)
    for name, mask in masks.items():
        np.testing.assert_allclose(masked[name][mask], cut[name], rtol=1e-9)
        assert np.isinf(masked[name][~mask]).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_alone_and_frozen_weights_count(method):
    model = toy(Chain).double().train()
    whole = evidence(model, method)
    model.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for name, table in evidence(model, method).items():
        np.testing.assert_array_equal(table, whole[name])
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(
        torch.equal(before[name], t) for name, t in model.state_dict().items()
    )  # running statistics among them


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_reaches_no_weight_gives_equal_finite_scores(method):
    model = toy(Chain).double()
    found = find_groups(model)
    gathered = gradient_evidence(
        ChannelIndex(model, found), PRUNERS[method](), lambda m, _: [m.out.bias.sum()]
    )
    for score in Prunable(model, found).scores(PRUNERS[method](), evidence=gathered).values():
        assert (score == 0).all()
    plan = Prunable(model, found).search(
        PRUNERS[method](),
        Target(1e9, imgsz=32),
        limits=Limits(1),
        pace=Pace(max_steps=71),
        source=source_of(lambda masks: gathered),
    )
    assert (
        sum(int(m.sum()) for m in plan.masks.values()) == 9
    )  # 5 of 14: ties do not add to the number


def test_what_is_missing_or_not_finite_is_said():
    model = toy(Chain)
    found = find_groups(model)
    with pytest.raises(UserError, match=r"GroupTaylor: needs gradients.*source"):
        Prunable(model, found).search(PRUNERS["group_taylor"](), Target(1.5, imgsz=32))
    with pytest.raises(UserError, match="none of 2 losses .* is finite"):
        gradient_evidence(
            ChannelIndex(model, found),
            PRUNERS["group_taylor"](),
            lambda m, _: [m.out.bias.sum() * float("nan")] * 2,
        )


def test_a_pass_that_is_not_finite_does_not_count(caplog):
    # a finite loss can have such gradients too: the square root at zero
    rows, bad = (
        [[3.0, 1.0, 1.0, 0, 0, 0], [5.0, 1.0, 2.0, 0, 0, 0]],
        (lambda m: (m.mid[1].weight * 0).sum().sqrt()),
    )
    model = toy(Chain).double()
    nn.init.ones_(model.mid[1].weight)
    found, good = find_groups(model), fixed_losses(rows)
    with caplog.at_level("WARNING"):
        tables = gradient_evidence(
            ChannelIndex(model, found),
            PRUNERS["group_taylor"](),
            lambda m, _: [bad(m), *good(m, False)],
        )
    np.testing.assert_allclose(tables["mid.1"], [4, 1, 1.5, 0, 0, 0])
    assert "1 of 3 passes" in caplog.text


@pytest.mark.parametrize(("every", "times"), [(0, 1), (4, 3), (10, 1)])
def test_gradients_are_taken_anew_every_so_many_steps(every, times):
    model = toy(Csp).double()
    found = find_groups(model)
    widths = []

    def measure(masks):
        widths.append(sum(int(m.sum()) for m in masks.values()))
        return evidence(model, "group_taylor", masks)

    plan = Prunable(model, found).search(
        PRUNERS["group_taylor"](),
        Target(1e9, imgsz=32),
        Limits(1),
        Pace(max_steps=10),
        EvidenceSource(measure, every),
    )
    assert len(widths) == times and widths[0] == 100 and widths == sorted(widths, reverse=True)
    if every == 4:
        assert widths == [100, plan.steps[3].channels, plan.steps[7].channels]


def test_single_images_split_a_batch():
    images = torch.arange(3.0).view(3, 1, 1, 1)
    targets = torch.tensor(
        [[0, 5, 0.1, 0.1, 0.1, 0.1], [2, 6, 0.2, 0.2, 0.2, 0.2], [2, 7, 0.3, 0.3, 0.3, 0.3]]
    )
    parts = list(single_images(images, targets))
    assert [(float(image), labels[:, :2].tolist()) for image, labels in parts] == [
        (0.0, [[0.0, 5.0]]),
        (1.0, []),
        (2.0, [[0.0, 6.0], [0.0, 7.0]]),
    ]
    assert targets[1, 0] == 2
