"""Weighted ridge regression from second moments, which are summed as the rows arrive.

The memory is that of the moments, (K, K + O) numbers, whatever the number of rows. Products are in
float32 about the mean of each part, sums and solutions in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096  # rows of a product; few enough for float32 sums
FLOOR = 1e-3  # of the mean power of the columns: what a column without power is held by
BOOSTS = (1.0, 1e2, 1e4, 1e6)  # of the ridge, where the normal matrix is not positive


@dataclass
class Moments:
    """Weighted means and centred second moments of rows (x, y), float64.

    Every tensor has leading dimensions G: that many independent problems side by side.

    Attributes:
        weight: sum of the weights of the rows, (); the same for all problems.
        x, y: means, (G, K) and (G, O).
        xx, xy, yy: centred sums of weighted products, (G, K, K), (G, K, O) and (G, O).
    """

    weight: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def none(cls, problems: int, inputs: int, outputs: int) -> "Moments":
        """Return the moments of no rows: zeros."""
        sizes = {"x": (inputs,), "y": (outputs,), "yy": (outputs,)}
        sizes |= {"xx": (inputs, inputs), "xy": (inputs, outputs)}
        zeros = {n: torch.zeros(problems, *size).double() for n, size in sizes.items()}
        return cls(torch.zeros(()).double(), **zeros)

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weight: Tensor | None = None) -> "Moments":
        """Return the moments of rows.

        Args:
            x: inputs, (G, rows, K).
            y: outputs, (G, rows, O).
            weight: of each row, (rows,), not negative; 1 where None.
        """
        weight = x.new_ones(x.shape[1]) if weight is None else weight.to(x)
        parts = zip(x.split(ROWS, 1), y.split(ROWS, 1), weight.split(ROWS), strict=True)
        first, *others = [cls._of_part(*part) for part in parts]
        for other in others:
            first += other
        return first

    @classmethod
    def _of_part(cls, x: Tensor, y: Tensor, weight: Tensor) -> "Moments":
        total = weight.double().sum()
        share = (weight / total.clamp(min=1e-30).to(weight))[:, None]
        mean_x, mean_y = (x * share).sum(1), (y * share).sum(1)
        x, y = x - mean_x[:, None], y - mean_y[:, None]
        wx = x * weight[:, None]
        yy = (y * y * weight[:, None]).double().sum(1)
        sums = (wx.mT @ x).double(), (wx.mT @ y).double(), yy
        return cls(total, mean_x.double(), mean_y.double(), *sums)

    def __iadd__(self, other: "Moments") -> "Moments":
        """Add the rows of other moments (Chan, Golub and LeVeque 1979)."""
        total = self.weight + other.weight
        share = other.weight / total.clamp(min=1e-30)
        dx, dy = other.x - self.x, other.y - self.y
        between = self.weight * share
        self.xx += other.xx + between * dx[:, :, None] * dx[:, None]
        self.xy += other.xy + between * dx[:, :, None] * dy[:, None]
        self.yy += other.yy + between * dy.square()
        self.x, self.y = self.x + share * dx, self.y + share * dy
        self.weight = total
        return self

    def scale(self, factor: float) -> None:
        """Multiply the weight of every row."""
        self.weight = self.weight * factor
        self.xx *= factor
        self.xy *= factor
        self.yy *= factor

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the covariances xx, xy and yy."""
        n = self.weight.clamp(min=1e-30)
        return self.xx / n, self.xy / n, self.yy / n

    def raw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean products xx, xy and yy, about zero."""
        xx, xy, yy = self.centred()
        x, y = self.x[:, :, None], self.y[:, None]
        return xx + x * x.mT, xy + x * y, yy + self.y.square()


@dataclass(frozen=True)
class Regression:
    """A solution: y is about x @ weight + intercept.

    Attributes:
        weight: (G, K, O), float64.
        intercept: (G, O), float64; 0 where none was fitted.
        before, after: mean squared residual of the prior and of the solution, each with its best
            intercept, over the variance of y; means over all outputs.
    """

    weight: Tensor
    intercept: Tensor
    before: float
    after: float


def ridge_regression(
    moments: Moments, prior: Tensor, ridge: float, intercept: bool = True
) -> Regression:
    """Solve for the weights that give y best, held to prior weights.

    Each column of x is held in proportion to its own power, so that the scale of a column does not
    matter.

    Args:
        moments: of the rows.
        prior: weights (G, K, O) that the ridge pulls towards.
        ridge: strength relative to the power of each column, not negative.
        intercept: whether the rows are centred and an intercept is fitted.

    Returns:
        The solution; the prior weights where the rows allow no finite one.
    """
    xx, xy, yy = moments.centred() if intercept else moments.raw()
    prior = prior.to(xx)
    weight = prior + _solve(xx, xy - xx @ prior, ridge)
    weight = weight if weight.isfinite().all() else prior
    lost = moments.y - (moments.x[:, None] @ weight)[:, 0]
    shift = lost if intercept else torch.zeros_like(lost)
    left = [_residual(xx, xy, yy, tried) for tried in (prior, weight)]
    return Regression(weight, shift, *left)


def ridge_solution(moments: Moments, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for weights and intercept as `ridge_regression` does, without waiting for the device.

    Args:
        moments: of the rows.
        ridge: strength relative to the power of each column, above 0; towards zero weights.

    Returns:
        Weights (G, K, O) and intercepts (G, O) in float64, and a bool (), false where the rows
        allow no finite solution.
    """
    xx, xy, _ = moments.centred()
    factor, info = torch.linalg.cholesky_ex(xx + torch.diag_embed(_penalty(xx, ridge)))
    weight = torch.cholesky_solve(xy, factor)
    intercept = moments.y - (moments.x[:, None] @ weight)[:, 0]
    return weight, intercept, (info == 0).all() & weight.isfinite().all()


def _penalty(xx: Tensor, ridge: float, boost: float = 1.0) -> Tensor:
    """Return what is added to the diagonal of xx (G, K, K): (G, K)."""
    power = xx.diagonal(dim1=1, dim2=2).clamp(min=0)
    mean = power.mean(1, keepdim=True).clamp(min=1e-12)
    return boost * ridge * (power + FLOOR * mean) + 1e-9 * mean


def _solve(xx: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve (xx + penalty) w = right, with more ridge where the matrix is not positive."""
    for boost in BOOSTS:
        penalty = torch.diag_embed(_penalty(xx, ridge, boost))
        factor, info = torch.linalg.cholesky_ex(xx + penalty)
        if not info.any():
            return torch.cholesky_solve(right, factor)
    return torch.zeros_like(right)


def _residual(xx: Tensor, xy: Tensor, yy: Tensor, weight: Tensor) -> float:
    """Return the mean over outputs of the squared residual over the variance."""
    left = yy - 2 * (weight * xy).sum(1) + (weight * (xx @ weight)).sum(1)
    return float((left.clamp(min=0) / yy.clamp(min=1e-12)).mean())
