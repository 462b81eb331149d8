"""Moments and ridge regression against plain formulas."""

import pytest
import torch

from utils.least_squares import Moments, ridge_regression


def rows(n=300, k=5, o=3, groups=2, seed=0):
    """Return x (groups, n, k), y (groups, n, o) and weights (n,), with means far from zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, n, k, generator=generator) * torch.arange(1, k + 1) + 7
    y = torch.randn(groups, n, o, generator=generator) - 3
    return x, y, torch.rand(n, generator=generator)


def test_moments_are_those_of_the_rows():
    x, y, w = rows()
    found = Moments.of(x, y, w)
    mean = (x * w[:, None]).sum(1) / w.sum()
    centred = (x - mean[:, None]).double()
    xx = (centred * w[:, None]).mT @ centred / w.sum()
    torch.testing.assert_close(found.x, mean.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.centred()[0], xx, rtol=1e-4, atol=1e-5)
    raw = ((x * w[:, None]).mT @ y).double() / w.sum()
    torch.testing.assert_close(found.raw()[1], raw, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [1, 7, 299, 300])
def test_parts_add_up_to_the_whole(part):
    x, y, w = rows()
    whole = Moments.of(x, y, w)
    sums = Moments.of(x[:, :part], y[:, :part], w[:part])
    if part < 300:
        sums += Moments.of(x[:, part:], y[:, part:], w[part:])
    for name in ("weight", "x", "y", "xx", "xy", "yy"):
        torch.testing.assert_close(
            getattr(sums, name), getattr(whole, name), rtol=1e-4, atol=1e-3, msg=name
        )


def test_a_scaled_half_counts_as_rows_of_that_weight():
    x, y, _ = rows()
    first, second = Moments.of(x[:, :100], y[:, :100]), Moments.of(x[:, 100:], y[:, 100:])
    first.scale(3.0)
    first += second
    weights = torch.cat((torch.full((100,), 3.0), torch.ones(200)))
    torch.testing.assert_close(
        first.centred()[1], Moments.of(x, y, weights).centred()[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_without_ridge_the_solution_is_least_squares(intercept):
    x, y, _ = rows(groups=1)
    prior = torch.zeros(1, 5, 3)
    found = ridge_regression(Moments.of(x, y), prior, 0.0, intercept)
    ones = torch.ones(300, 1) if intercept else torch.empty(300, 0)
    wanted = torch.linalg.lstsq(torch.cat((x[0], ones), 1).double(), y[0].double()).solution
    torch.testing.assert_close(found.weight[0], wanted[:5], rtol=1e-3, atol=1e-4)
    shift = wanted[5] if intercept else torch.zeros(3).double()
    torch.testing.assert_close(found.intercept[0], shift, rtol=1e-3, atol=1e-3)


def test_ridge_by_hand():
    # One column of power 4, y = 2 x: (4 + r 4.004) w = 8 + r 4.004 prior.
    x = torch.tensor([[[-2.0], [2.0]]])
    found = ridge_regression(Moments.of(x, 2 * x), torch.ones(1, 1, 1), 0.5)
    wanted = 1 + (8 - 4) / (4 + 0.5 * 4.004)
    assert float(found.weight) == pytest.approx(wanted, rel=1e-6)
    assert found.before == pytest.approx(0.25) and found.after < found.before


def test_much_ridge_gives_the_prior():
    x, y, _ = rows()
    prior = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    found = ridge_regression(Moments.of(x, y), prior, 1e9)
    torch.testing.assert_close(found.weight, prior.double(), rtol=1e-5, atol=1e-6)


def test_equal_columns_and_constant_ones_have_a_finite_solution():
    x, y, _ = rows(groups=1)
    x[:, :, 1], x[:, :, 2] = x[:, :, 0], 4.0
    found = ridge_regression(Moments.of(x, y), torch.zeros(1, 5, 3), 1e-6)
    assert found.weight.isfinite().all() and found.after <= found.before
