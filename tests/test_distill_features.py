"""Feature losses: hand-computed cases, the properties each must have, and what tells it from its
neighbours.
"""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.testing import assert_close

from distill import FEATURE_LOSSES, LOGIT_LOSSES, LogitSetup
from distill.base import standardised
from distill.pairing import check_arguments
from tests.conftest import ROOT
from utils.errors import UserError
from utils.registry import registered_names

NAMES = ["cwd", "mgd", "mimic", "pkd"]
VARIANTS = [
    ("cwd", {}),
    ("cwd", {"norm": False}),
    ("mimic", {}),
    ("mimic", {"norm": False}),
    ("pkd", {}),
]  # MGD draws
WHOLE = {"mask_ratio": 0.0}  # MGD that keeps every position


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def made(name, student=4, teacher=4, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return FEATURE_LOSSES[name](student, teacher, **options).to(dtype)


def row(*values):
    """One image, one channel, one row of cells."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


class Same(nn.Module):
    """A generator that hands the map on."""

    def forward(self, x):
        return x


def test_names_are_read_without_importing():
    assert registered_names(ROOT / "distill", "FEATURE_LOSSES") == NAMES
    assert set(NAMES) <= set(FEATURE_LOSSES.names())
    with pytest.raises(UserError, match="did you mean 'mimic'"):
        FEATURE_LOSSES["mimik"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_zero_where_student_is_teacher_and_positive_elsewhere(name, options, dtype):
    loss, t = made(name, dtype=dtype, **options), maps(2, 4, 5, 3, dtype=dtype)
    value = loss(t, t)
    assert value.shape == () and value.dtype == dtype and abs(value) < 1e-6
    assert loss(maps(2, 4, 5, 3, seed=1, dtype=dtype), t) > 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [*VARIANTS, ("mgd", WHOLE), ("mgd", WHOLE | {"form": "paper", "norm": True})],
)
def test_a_batch_twice_has_the_value_of_the_batch(name, options):
    loss, s, t = made(name, **options), maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    n = 30  # values of a channel; PKD's unbiased deviation feels their number
    factor = ((2 * n - 1) / (2 * n)) / ((n - 1) / n) if name == "pkd" else 1.0
    assert_close(loss(torch.cat((s, s)), torch.cat((t, t))), loss(s, t) * factor, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "options"), [*VARIANTS, ("mgd", WHOLE), ("mgd", WHOLE | {"norm": True})]
)
def test_gradients_are_those_of_finite_differences(name, options):
    loss, s, t = (
        made(name, 2, 3, **options),
        maps(2, 2, 3, 2).requires_grad_(),
        maps(2, 3, 3, 2, seed=1),
    )
    assert torch.autograd.gradcheck(lambda student: loss(student, t), s)


@pytest.mark.parametrize("name", NAMES)
def test_adapters_only_where_channels_differ_and_no_gradient_to_the_teacher(name):
    generator = 2 * (4 * 4 * 9 + 4) if name == "mgd" else 0
    for student, extra in ((4, 0), (6, 6 * 4 + 4)):
        loss = made(name, student)
        assert sum(p.numel() for p in loss.parameters()) == extra + generator
        s, t = maps(2, student, 5, 3).requires_grad_(), maps(2, 4, 5, 3, seed=1).requires_grad_()
        loss(s, t).backward()
        assert t.grad is None and s.grad is not None and s.grad.abs().sum() > 0
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters() if p.dim() > 1
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_against_the_gradient_makes_it_smaller(name):
    loss, s, t = (
        made(name, **(WHOLE if name == "mgd" else {})),
        maps(2, 4, 5, 3).requires_grad_(),
        maps(2, 4, 5, 3, seed=1),
    )
    (gradient,) = torch.autograd.grad(loss(s, t), s)
    assert loss(s - 0.01 * gradient / gradient.norm(), t) < loss(s, t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options"), [*VARIANTS, ("mgd", WHOLE), ("mgd", WHOLE | {"form": "paper"})]
)
def test_half_precision_is_computed_in_float32_even_under_autocast(name, options, dtype):
    loss = made(name, 3, dtype=torch.float32, **options)
    s, t = (
        maps(2, c, 5, 4, seed=c).clamp(-2, 2).mul(5e3).to(dtype) for c in (3, 4)
    )  # up to 1e4: squares are beyond fp16
    s.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32 and s.grad is not None and s.grad.isfinite().all()
    assert_close(value.double(), loss.double()(s.double(), t.double()), rtol=1e-4, atol=0)


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(AssertionError, match=r"\(5, 3\) and \(1, 3\)"):
        made("mimic")(maps(2, 4, 5, 3), maps(2, 4, 1, 3))


def test_standardised_is_batch_norm_without_affine_and_memory():
    x = maps(3, 4, 5, 2) * 7 + 3
    assert_close(standardised(x), batch_norm(x, None, None, training=True), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("pkd", {}), ("mimic", {"norm": True})])
def test_a_dead_channel_and_a_single_value_say_nothing(name, options):
    s, t = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    s[:, 2] = 0.3
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(made(name, **options)(s, t), s)
    assert (
        gradient.isfinite().all()
        and gradient[:, 2].abs().max() == 0
        and gradient[:, 1].abs().max() > 0
    )
    one = maps(1, 4, 1, 1).requires_grad_()
    value = made(name, **options)(one, maps(1, 4, 1, 1, seed=1))
    assert value == 0 and torch.autograd.grad(value, one)[0].abs().max() == 0


# Mimic


def test_mimic_by_hand():
    assert made("mimic", 1, 1, norm=False)(row(1, 2), row(3, 6)) == (2**2 + 4**2) / 2
    assert_close(
        made("mimic", 1, 1, norm=True)(row(1, 2, 4), -row(1, 2, 4)).item(), 4.0, rtol=1e-4, atol=0
    )  # opposite


def test_norm_takes_scale_and_offset_away():
    s, t, by = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1), maps(1, 4, 1, 1, seed=2).exp()
    for name in ("mimic", "cwd"):
        normed, plain = made(name, norm=True), made(name, norm=False)
        assert_close(normed(s * by + by, t * 3 - 1), normed(s, t), rtol=1e-4, atol=1e-5)
        assert abs(plain(s * by + by, t * 3 - 1) - plain(s, t)) > 0.1


# CWD


@pytest.mark.parametrize(
    ("temperature", "value", "slope"),
    [(1, 0.130812035941137, 0.25), (2, 0.145363131481895, 0.26794919243)],
)
def test_cwd_by_hand(temperature, value, slope):
    s, t = (
        row(0, 0).requires_grad_(),
        row(0, math.log(3)),
    )  # the teacher looks at the second cell three times as much
    loss = made("cwd", 1, 1, temperature=temperature, norm=False)(s, t)
    assert_close(loss.item(), value, rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad(loss, s)[0], row(slope, -slope), rtol=1e-9, atol=0)


def test_cwd_is_teacher_first():
    s, t = row(0, 0), row(0, math.log(3))
    forward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    loss = made("cwd", 1, 1, norm=False)
    assert_close([loss(s, t).item(), loss(t, s).item()], [forward, backward], rtol=1e-12, atol=0)


def test_cwd_gradient_is_the_difference_of_the_distributions():
    s, t, temperature = maps(2, 4, 5, 3).requires_grad_(), maps(2, 4, 5, 3, seed=1), 3.0
    (gradient,) = torch.autograd.grad(made("cwd", temperature=temperature, norm=False)(s, t), s)
    p, q = ((x.detach() / temperature).flatten(2).softmax(2).view_as(x) for x in (s, t))
    assert_close(gradient, temperature * (p - q) / (2 * 4), rtol=1e-9, atol=1e-12)
    assert gradient.sum((2, 3)).abs().max() < 1e-15


def test_cwd_with_a_large_temperature_is_half_the_variance_of_the_difference():
    s, t = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    limit = (s - t).var((2, 3), correction=0).mean() / 2
    errors = [
        abs(made("cwd", temperature=T, norm=False)(s, t) / limit - 1).item()
        for T in (1, 100, 10000)
    ]
    assert errors[0] > 0.02 and errors[1] < 0.02 and errors[2] < 2e-4


def test_cwd_sees_where_not_how_much_and_channels_apart():
    loss, s, t = made("cwd", norm=False), maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    offset = 10 * maps(2, 4, 1, 1, seed=2)
    assert_close(loss(s + offset, t - offset), loss(s, t), rtol=1e-9, atol=0)
    assert abs(loss(2 * s, t) - loss(s, t)) > 0.1
    order = [2, 0, 3, 1]
    assert_close(loss(s[:, order], t[:, order]), loss(s, t), rtol=1e-12, atol=0)
    assert loss(maps(2, 4, 1, 1), maps(2, 4, 1, 1, seed=1)) == 0


# MGD


def test_mgd_by_hand(monkeypatch):
    for form, value in (
        ("paper", 10.0),
        ("mean", 2.5),
    ):  # (1 - 2)^2 + (0 - 2)^2 + (3 - 2)^2 + (0 - 2)^2
        loss = made("mgd", 1, 1, form=form, alpha=1)
        loss.generator = Same()
        monkeypatch.setattr(loss, "mask", lambda maps: row(1, 0, 1, 0))
        s = row(1, 2, 3, 4).requires_grad_()
        result = loss(s, row(2, 2, 2, 2))
        assert result == value
        assert_close(
            torch.autograd.grad(result, s)[0], row(-2, 0, 2, 0) * value / 10, rtol=0, atol=0
        )


def test_mgd_forms_and_alpha():
    s, t = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    mean, paper, half = (
        made("mgd", **WHOLE, **o)(s, t) for o in ({}, {"form": "paper"}, {"alpha": 0.5})
    )
    assert_close(paper, mean * 4 * 5 * 3 * 2e-5, rtol=1e-9, atol=0)
    assert_close(half, mean / 2, rtol=1e-12, atol=0)


def test_mgd_generator_is_the_papers():
    loss, s = made("mgd", 4, 6, **WHOLE), maps(2, 4, 5, 3)
    first, second = (layer for layer in loss.generator if isinstance(layer, nn.Conv2d))
    assert first.weight.shape == second.weight.shape == (
        6,
        6,
        3,
        3,
    ) and first.padding == second.padding == (1, 1)
    assert_close(
        loss(s, maps(2, 6, 5, 3)),
        (second(first(loss.align(s)).relu()) - maps(2, 6, 5, 3)).square().mean(),
    )


def test_mgd_mask_statistics():
    loss, x = made("mgd", mask_ratio=0.65), maps(8, 4, 100, 100)
    torch.manual_seed(3)
    first, second = loss.mask(x), loss.mask(x)
    assert first.shape == (8, 1, 100, 100) and set(first.unique().tolist()) == {0.0, 1.0}
    kept = first.mean((1, 2, 3))
    assert (
        abs(kept.mean() - 0.35) < 0.006 and ((kept - 0.35).abs() < 0.02).all()
    )  # deviations: .0017 and .0048
    agree = 0.35**2 + 0.65**2  # of two independent masks
    assert abs((first == second).double().mean() - agree) < 0.01
    assert abs((first[1:] == first[:-1]).double().mean() - agree) < 0.01
    torch.manual_seed(3)
    assert torch.equal(loss.mask(x), first)
    assert (
        made("mgd", mask_ratio=0).mask(x).min() == 1
        and made("mgd", mask_ratio=1).mask(x).max() == 0
    )


def test_mgd_masks_the_aligned_student_in_all_channels(monkeypatch):
    loss = made("mgd", 2, 3, form="paper", alpha=1)
    loss.generator = Same()
    mask = (maps(2, 1, 5, 3, seed=5) > 0).double()
    monkeypatch.setattr(loss, "mask", lambda maps: mask)
    s, t = maps(2, 2, 5, 3).requires_grad_(), maps(2, 3, 5, 3, seed=1)
    value = loss(s, t)
    # dropped after the 1x1 convolution: its bias is gone too
    assert_close(value, (loss.align(s) * mask - t).square().sum() / 2, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(value, s)
    assert torch.equal(gradient.abs().amax(1, keepdim=True) > 0, mask > 0)


def test_mgd_with_everything_dropped_does_not_see_the_student():
    loss, t = made("mgd", mask_ratio=1), maps(2, 4, 5, 3, seed=1)
    assert loss(maps(2, 4, 5, 3), t) == loss(maps(2, 4, 5, 3, seed=2), t)


# PKD


def test_pkd_is_one_minus_the_correlation():
    s, t = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    s = s + 0.7 * t  # so that they correlate
    r = [np.corrcoef(s[:, c].flatten(), t[:, c].flatten())[0, 1] for c in range(4)]
    assert_close(made("pkd")(s, t).item(), (1 - np.mean(r)) * 29 / 30, rtol=1e-9, atol=0)
    assert_close(made("pkd")(-t, t).item(), 2 * 29 / 30, rtol=1e-9, atol=0)


def test_pkd_does_not_feel_positive_scale_and_offset():
    s, t, by = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1), maps(1, 4, 1, 1, seed=2).exp()
    loss = made("pkd")
    assert_close(loss(s * by + 5, t * by * 0.1 - by), loss(s, t), rtol=1e-8, atol=0)
    assert abs(loss(-s, t) - loss(s, t)) > 1e-3


def test_neighbours_differ():
    s, t = maps(2, 4, 5, 3), maps(2, 4, 5, 3, seed=1)
    # one offset for all cells: only mimic sees it. One factor for all: PKD alone does not
    plain = {"mimic": {"norm": False}, "cwd": {"norm": False}}
    values = {
        name: [made(name, **plain.get(name, {}))(x, t).item() for x in (s, s + 3, 2 * s)]
        for name in ("mimic", "cwd", "pkd")
    }
    changes = {
        name: [abs(v - first) > 0.05 for v in moved] for name, (first, *moved) in values.items()
    }
    assert changes == {"mimic": [True, True], "cwd": [False, True], "pkd": [False, False]}
    # MGD is mimic behind a generator
    mgd = made("mgd", **WHOLE)
    mgd.generator = Same()
    assert mgd(s, t) == made("mimic", norm=False)(s, t)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cwd", {"temperature": 0}, "cwd: temperature 0: must be a number above 0"),
        ("cwd", {"temperature": "hot"}, "cwd: temperature hot: must be"),
        ("mgd", {"form": "maen"}, "mgd: unknown form 'maen'; did you mean 'mean'"),
        ("mgd", {"mask_ratio": 1.5}, "mgd: mask_ratio 1.5: must be a number from 0 to 1"),
        ("mgd", {"alpha": -1}, "mgd: alpha -1: must be"),
    ],
)
def test_arguments_out_of_range_are_the_users(name, options, message):
    with pytest.raises(UserError, match=message):
        FEATURE_LOSSES[name](4, 4, **options)


def test_every_argument_can_be_given_on_the_command_line():
    check_arguments("mgd", {"form": "paper", "alpha": 1e-5, "mask_ratio": 0.5, "norm": True})
    check_arguments("cwd", {"temperature": 4, "norm": True})
    with pytest.raises(UserError, match="--feature-args mgd.alpha=much: must be a number"):
        check_arguments("mgd", {"alpha": "much"})


def test_the_losses_of_the_docs_work(monkeypatch):
    for registry in (FEATURE_LOSSES, LOGIT_LOSSES):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    text = (ROOT / "docs/custom_distillation_loss.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {"__name__": "docs"})
    s, t = maps(2, 4, 5, 3), maps(2, 6, 5, 3, seed=1)
    assert 0 < made("attention", 4, 6)(s, t) < 4 and made("attention", 6, 6)(t, t) == 0
    setup = LogitSetup(torch.ones(1, 1, 2), nc=1, box=1, obj=0.5, cls=1, balance=(4.0,))
    raw = [torch.zeros(2, 1, 3, 3, 6)]
    assert_close(LOGIT_LOSSES["objectness"](setup)(raw, raw).item(), 0.5 * 4 * math.log(2))
