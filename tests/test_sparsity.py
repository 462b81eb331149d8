"""The penalties against hand-computed terms, a slow loop over channels, and the library where it is
right.
"""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from prune_methods import ChannelIndex, Prunable, find_groups
from prune_methods.sparsity.penalties import make_penalty
from prune_methods.sparsity.slice_penalties import ALPHA
from tests.prune_toys import Chain, Csp, Rep, toy, unit
from utils.engine.optim import parameter_groups
from utils.errors import UserError

METHODS = ["slim", "group_slim", "group_sl", "group_reg"]


def zero_grads(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def terms(
    model: nn.Module, method: str, reg: float, ignored=(), steps: int = 1, **more
) -> dict[str, torch.Tensor]:
    """What one `add` puts into zero gradients, by parameter."""
    penalty = make_penalty(method, Prunable.of(model).index, ignored, settings=more)
    penalty.bind(model)
    for _ in range(steps):
        zero_grads(model)
        penalty.add(reg)
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }


class Residual(nn.Module):
    """stem and inner are added: their two batch norms are coupled, `free` is on its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.free, self.out = (
            unit(3, 2),
            unit(2, 2),
            unit(2, 2),
            nn.Conv2d(2, 1, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        return self.out(self.free(x + self.inner(x)))


def residual(stem=(3.0, 0.0), inner=(4.0, 0.0), free=(-0.5, 0.2)) -> Residual:
    torch.manual_seed(0)
    model = Residual()
    for layer, gammas in ((model.stem, stem), (model.inner, inner), (model.free, free)):
        layer[1].weight.data = torch.tensor(gammas)
    return model


def test_slim_is_the_sign_of_every_gamma_and_zero_at_zero():
    found = terms(residual(), "slim", 0.1)
    assert {name: term.tolist() for name, term in found.items()} == {
        "stem.1.weight": pytest.approx([0.1, 0.0]),
        "inner.1.weight": pytest.approx([0.1, 0.0]),
        "free.1.weight": pytest.approx([-0.1, 0.1]),
    }


def test_group_slim_divides_by_the_root_mean_square_of_the_coupled_gammas():
    """(3, 4): root of (9 + 16) / 2; a lone batch norm is as under slim; a channel of zeros stays at
    zero.
    """
    found, norm = terms(residual(), "group_slim", 0.1), 12.5**0.5
    assert found["stem.1.weight"].tolist() == pytest.approx([0.1 * 3 / norm, 0.0])
    assert found["inner.1.weight"].tolist() == pytest.approx([0.1 * 4 / norm, 0.0])
    assert found["free.1.weight"].tolist() == pytest.approx([-0.1, 0.1])


def test_group_slim_of_equal_gammas_is_slim():
    model = residual(stem=(2.0, 0.3), inner=(2.0, 0.3))
    slim, group = terms(model, "slim", 0.1), terms(model, "group_slim", 0.1)
    assert (
        all(torch.allclose(slim[name], group[name]) for name in slim)
        and slim.keys() == group.keys()
    )


@pytest.mark.parametrize("method", ["slim", "group_slim"])
def test_ignored_batch_norms_are_left_alone(method):
    assert terms(residual(), method, 0.1, ignored={"free.1"}).keys() == {
        "stem.1.weight",
        "inner.1.weight",
    }


def slow_scores(model: nn.Module) -> list[tuple]:
    """Group, and sum of squares per channel, by loops over members and channels."""
    result = []
    for group in find_groups(model):
        scores = [0.0] * group.size
        for member in group.members:
            if member.kind == "param":
                continue
            weight = model.get_submodule(member.name).weight.detach()
            for mine, theirs in zip(
                member.layer_channels.tolist(), member.group_channels.tolist(), strict=True
            ):
                part = weight[:, mine] if member.kind == "in" else weight[mine]
                scores[theirs] += float(part.square().sum())
        result.append((group, scores))
    return result


def slow_terms(model: nn.Module, factors) -> dict[str, torch.Tensor]:
    """factor(scores)[k] * w for each coupled slice, slice by slice."""
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for group, scores in slow_scores(model):
        factor = factors(scores)
        for member in group.members:
            if member.kind == "param":
                continue
            weight, term = (
                model.get_submodule(member.name).weight.detach(),
                found[f"{member.name}.weight"],
            )
            for mine, theirs in zip(
                member.layer_channels.tolist(), member.group_channels.tolist(), strict=True
            ):
                at = (slice(None), mine) if member.kind == "in" else mine
                term[at] += factor[theirs] * weight[at]
    return {name: term for name, term in found.items() if term.any()}


def same_terms(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-7) for name in a
    )


@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_group_sl_is_the_slow_loop(kind):
    model = toy(kind)

    def factors(scores):
        norms = [score**0.5 for score in scores]
        return [
            0.01 * 2 ** (ALPHA * (max(norms) - norm) / (max(norms) - min(norms))) for norm in norms
        ]

    assert same_terms(terms(model, "group_sl", 0.01), slow_terms(model, factors))


@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_group_reg_grows_every_k_steps(kind):
    model = toy(kind)

    def grown(times):
        return lambda scores: [
            0.01 + times * 0.2 * (max(scores) - s) / (max(scores) - min(scores)) for s in scores
        ]

    for steps, times in (
        (1, 0),
        (3, 0),
        (4, 1),
        (7, 2),
    ):  # the third step is the first after which it grows
        found = terms(model, "group_reg", 0.01, steps=steps, delta_reg=0.2, delta_every=3)
        assert same_terms(found, slow_terms(model, grown(times))), steps


@pytest.mark.parametrize("method", ["group_sl", "group_reg"])
def test_equal_scores_give_the_plain_strength(method):
    """Where the library divides by zero."""
    model = residual()
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    found = terms(model, method, 0.01, steps=3, delta_every=1)
    assert found["free.1.weight"].tolist() == pytest.approx(
        [0.005, 0.005]
    )  # 0.01 * 0.5: g is 1, lambda has not grown
    assert all(term.isfinite().all() for term in found.values())
    assert found["free.0.weight"].flatten().tolist() == pytest.approx(
        [0.01] * 4
    )  # as output and as input


@pytest.mark.parametrize(
    ("method", "add"), [("group_slim", {"group_lasso": True}), ("slim", {}), ("group_sl", None)]
)
def test_terms_are_the_librarys_where_it_is_right(method, add):
    """Its group lasso on coupled gammas, its sign of gamma, and DepGraph's sparse learning, on a
    chain and a CSP block.
    """
    for kind in (Chain, Csp):
        model = toy(kind)
        ours = terms(copy.deepcopy(model), method, 0.01)
        theirs = zero_grads(model)
        pruner = library(theirs, add)
        pruner.regularize(theirs) if add is not None else pruner.regularize(theirs, alpha=2**ALPHA)
        left = {
            n: p.grad for n, p in theirs.named_parameters() if p.grad is not None and p.grad.any()
        }
        if add is None:  # it leaves depthwise convolutions out, so the group with `wise` differs
            ours, left = (
                {n: g for n, g in t.items() if n.split(".")[0] not in ("merge", "wise", "out")}
                for t in (ours, left)
            )
        assert len(ours) >= 2 and same_terms(ours, left), kind


def library(model: nn.Module, bn: dict | None):
    common = {
        "ignored_layers": [model.out],
        "in_channel_groups": {},
        "out_channel_groups": {},
        "num_heads": {},
    }
    x = (torch.rand(1, 3, 16, 16),)
    if bn is not None:
        return tp.pruner.BNScalePruner(
            model, x, tp.importance.BNScaleImportance(normalizer=None), reg=0.01, **bn, **common
        )
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    return tp.pruner.GroupNormPruner(model, x, importance, reg=0.01, **common)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_layers_are_left_out(method):
    model = residual()
    model.stem.requires_grad_(False)
    penalty = make_penalty(method, Prunable.of(model).index)
    penalty.bind(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    penalty.add(0.1)
    assert model.stem[1].weight.grad is None and model.free[1].weight.grad.any()


@pytest.mark.parametrize("method", METHODS)
def test_everything_frozen_is_the_users_error(method):
    model = residual().requires_grad_(False)
    with pytest.raises(UserError, match="--freeze"):
        make_penalty(method, Prunable.of(model).index).bind(model)


def test_fused_model_is_the_users_error():
    with pytest.raises(UserError, match="no batch norm"):
        make_penalty("slim", ChannelIndex(nn.Conv2d(3, 4, 1), []))


def test_weight_decay_leaves_marked_layers():
    model = residual()
    before = parameter_groups(model)["decay"]
    model.free[0].decay_free = True
    after = parameter_groups(model)
    assert [id(p) for p in after["decay"]] == [
        id(p) for p in before if p is not model.free[0].weight
    ]
    assert any(p is model.free[0].weight for p in after["no_decay"])


def test_group_norms_are_those_of_the_slow_loop():
    model = toy(Csp)
    penalty = make_penalty("group_sl", Prunable.of(model).index)
    penalty.bind(model)
    norms = penalty.group_norms(copy.deepcopy(model))
    (group, scores), *_ = slow_scores(model)
    (member,) = [m for m in group.members if m.name == "stem.1"]
    wanted = [scores[channel] ** 0.5 for channel in member.group_channels]
    assert norms["stem.1"][member.layer_channels].tolist() == pytest.approx(wanted, rel=1e-5)
