"""The adapter that is the best linear map of the last batches, solved instead of trained.

A 1x1 convolution that is trained beside the student learns more slowly than the student, which is
then bent towards a random projection. The ridge solution is right from its first use.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from distill.adapters.base import ADAPTERS, Adapter, LayerPair
from utils.engine.dist import gather
from utils.least_squares import Moments, ridge_solution

DECAY = 0.95  # of the weight of earlier batches: the moments are those of some twenty batches
RIDGE = 1e-2  # relative to the power of each channel


@ADAPTERS.register("closed-form")
class ClosedForm(Adapter):
    """Predict the teacher's channels from the student's, cell by cell, by ridge regression.

    First and second moments of both maps run along with the training: summed over the ranks, and
    stored in `last.pt`. The gradient of a loss passes through the prediction to the student; the
    weights of the prediction get none.
    """

    waits = True
    weight: Tensor
    bias: Tensor

    def __init__(self, pair: LayerPair):
        super().__init__(pair)
        ours, theirs = pair.channels
        self.register_buffer("weight", torch.zeros(theirs, ours, 1, 1))
        self.register_buffer("bias", torch.zeros(theirs))
        for name, value in vars(Moments.none(1, ours, theirs)).items():
            self.register_buffer(f"moments_{name}", value)

    @property
    def kernel(self) -> Tensor:
        """Weight of the present solution, (Ct, Cs, 1, 1)."""
        return self.weight

    @property
    def moments(self) -> Moments:
        """Moments of the observed batches, copied."""
        names = vars(Moments.none(1, 1, 1))
        return Moments(**{name: getattr(self, f"moments_{name}").clone() for name in names})

    @torch.no_grad()
    def observe(self, student: Tensor, teacher: Tensor) -> None:
        """Add the cells of a batch; a batch with a value that is not finite is left out."""
        first, *others = gather(_flat(Moments.of(_rows(student), _rows(teacher))))
        batch = self._moments_of(first)
        for other in others:
            batch += self._moments_of(other)
        finite = _flat(batch).isfinite().all()
        found = self.moments
        found.scale(DECAY)
        found += batch
        for name, value in vars(found).items():
            held = getattr(self, f"moments_{name}")
            held.copy_(value.where(finite, held))

    @torch.no_grad()
    def solve(self) -> None:
        """Take the ridge solution over; the last one stays where there is no finite one."""
        weight, bias, solved = ridge_solution(self.moments, RIDGE)
        new = weight[0].mT[:, :, None, None].to(self.weight)
        self.weight.copy_(new.where(solved, self.weight))
        self.bias.copy_(bias[0].to(self.bias).where(solved, self.bias))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction of the teacher's map from the student's, and the teacher's map."""
        weight, bias = self.weight.to(student), self.bias.to(student)
        return conv2d(student, weight, bias), teacher

    def _moments_of(self, flat: Tensor) -> Moments:
        """Return the moments that `_flat` wrote into one vector."""
        like = vars(Moments.none(1, *self.pair.channels))
        parts = flat.split([value.numel() for value in like.values()])
        shaped = zip(like.items(), parts, strict=True)
        return Moments(**{name: part.view_as(value) for (name, value), part in shaped})


def _flat(moments: Moments) -> Tensor:
    """Return all numbers of some moments as one vector."""
    return torch.cat([value.flatten() for value in vars(moments).values()])


def _rows(maps: Tensor) -> Tensor:
    """Return the cells of maps (N, C, H, W) as rows (1, N H W, C)."""
    return maps.movedim(1, -1).flatten(0, -2)[None]
