"""Penalties on all weights of coupled channels: `group_sl` and `group_reg`."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.sparsity.penalties import PENALTIES, Forecast, QuadraticPenalty, trainable
from prune_methods.sparsity.step_sizes import StepSizes
from utils.errors import UserError

ALPHA = 4.0  # group_sl: the weakest channel of a group is pulled 2^ALPHA times as hard (DepGraph)
STRONG_LEFT = 0.9  # share of gamma that group_reg's constant part leaves the strongest, with auto
WEAK_LEFT = 0.5  # share that group_reg, growing, leaves the weakest; most others are nearly as weak
EQUAL = 1e-6  # scores whose spread, relative to the largest, is below this are taken as equal


class SlicePenalty(QuadraticPenalty):
    """c_k * w on all slices that are coupled at channel k: filters, input columns, gammas.

    `add` of a subclass computes c and calls `_pull`.
    """

    def __init__(self, index: ChannelIndex, ignored: Collection[str] = ()):
        super().__init__(index, ignored)
        if not index.groups:
            raise UserError(
                "sparse training: the model has no channels that could be pruned; see why with"
                " prune.py --dry-run"
            )
        parameters = dict(index.model.named_parameters())
        none = np.zeros(0, dtype=int)
        self.layers = []
        for name, outs in index.outs.items():
            places = np.concatenate((outs, index.ins.get(name, none)))
            weighted = f"{name}.weight" in parameters and name not in ignored
            if weighted and (places < index.total).any():
                self.layers.append(name)
        self.norms = [n for n in self.norms if n in self.layers]

    def bind(self, model: nn.Module) -> None:
        """See Penalty."""
        found = trainable(model, self.layers)
        self._names, self._weights = list(found), list(found.values())
        self._sides = [[s[n] for s in (self.index.outs, self.index.ins) if n in s] for n in found]
        flat = [place for sides in self._sides for place in sides]
        device = self._weights[0].device
        self._places = torch.from_numpy(np.concatenate(flat)).to(device)
        self._sizes = [len(place) for place in flat]
        self._group_of = torch.from_numpy(self.index.group_of).to(device)

    def _scores(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the sum of w^2 over the coupled slices of each flat channel."""
        sums: list[Tensor] = []
        for weight, sides in zip(weights, self._sides, strict=True):
            squares = weight.square()
            if len(sides) == 1:
                sums.append(squares.reshape(len(squares), -1).sum(1))
            else:
                table = squares.reshape(*squares.shape[:2], -1).sum(2)
                sums += [table.sum(1), table.sum(0)]
        flat = torch.cat(sums)
        return flat.new_zeros(self.index.total + 1).index_add_(0, self._places, flat)[:-1]

    def _weakness(self, scores: Tensor) -> Tensor:
        """Return (max - score) / (max - min) within each group.

        0 for the strongest channel, 1 for the weakest; 0 where all are equal.
        """
        empty, place = scores.new_zeros(len(self.index.groups)), self._group_of
        top = empty.scatter_reduce(0, place, scores, "amax", include_self=False)
        spread = top - empty.scatter_reduce(0, place, scores, "amin", include_self=False)
        spread = spread.where(spread > EQUAL * top, torch.inf)
        return (top[place] - scores) / spread[place]

    def _pull(self, factors: Tensor) -> None:
        """Add factor * weight to the gradient of each slice.

        A weight in two groups, output of one and input of another, gets both.
        """
        parts = iter(torch.cat((factors, factors.new_zeros(1)))[self._places].split(self._sizes))
        for weight, sides in zip(self._weights, self._sides, strict=True):
            factor = next(parts).view(-1, *[1] * (weight.dim() - 1))
            if len(sides) == 2:
                factor = factor + next(parts).view(1, -1, *[1] * (weight.dim() - 2))
            if weight.grad is not None:
                weight.grad.addcmul_(weight, factor)

    @torch.no_grad()
    def group_norms(self, model: nn.Module) -> dict[str, Tensor]:
        """See Penalty; `model` is the bound one or of its form, such as the average."""
        parameters = dict(model.named_parameters())
        norms = self._scores([parameters[f"{name}.weight"] for name in self._names]).sqrt()
        norms = torch.cat((norms, norms.new_zeros(1)))
        places = {n: torch.from_numpy(self.index.outs[n]).to(norms.device) for n in self.norms}
        return {name: norms[place] for name, place in places.items()}


@PENALTIES.register("group_sl")
class GroupSLPenalty(SlicePenalty):
    """reg * g_k * w on all coupled slices (DepGraph, Fang et al., CVPR 2023, equation 4).

    g_k = 2^(4 * (Imax - I_k) / (Imax - Imin)), I_k the norm of all slices that are coupled at k.
    In a group of equal scores every g is 1.
    """

    weakest_factor = 2**ALPHA

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        self._pull(reg * torch.exp2(ALPHA * self._weakness(self._scores(self._weights).sqrt())))


@PENALTIES.register("group_reg")
class GroupRegPenalty(SlicePenalty):
    """lambda_k * w on all coupled slices (Growing Regularization, Wang et al., ICLR 2021).

    lambda_k starts at reg. Every `delta_every` optimizer steps it grows by
    delta_reg * (Imax - I_k) / (Imax - Imin), I_k the sum of w^2 of the slices: the weakest channel
    of a group by delta_reg, the strongest not at all.
    """

    option = "--delta-reg"
    grows = True
    settings = ("delta_reg", "delta_every")

    def __init__(
        self,
        index: ChannelIndex,
        ignored: Collection[str] = (),
        delta_reg: float = 1e-4,
        delta_every: int = 10,
    ):
        super().__init__(index, ignored)
        self.delta_reg, self.delta_every = delta_reg, delta_every
        self._factors: Tensor | None = None
        self._steps = 0

    def bind(self, model: nn.Module) -> None:
        """See Penalty."""
        super().bind(model)
        if self._factors is not None:
            self._factors = self._factors.to(self._weights[0].device)

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        if self._factors is None:
            self._factors = self._weights[0].new_full((self.index.total,), reg)
        self._pull(self._factors)
        self._steps += 1
        if self._steps % self.delta_every == 0:
            self._factors += self.delta_reg * self._weakness(self._scores(self._weights))

    def expected_gamma(self, steps: StepSizes, reg: float, start: float) -> tuple[float, float]:
        """See Penalty; the weakest channel is the weakest of its group all the time."""
        pull = steps.pull(reg)
        grown = steps.growth(self.delta_reg, self.delta_every)
        return start * math.exp(-(pull + grown)), start * math.exp(-pull)

    def auto_reg(self, steps: StepSizes, start: float) -> float:
        """Return a small reg, which pulls all channels alike; `auto_delta` does the rest."""
        assert steps.pull() > 0, "a run without a step moves nothing"
        return -math.log(STRONG_LEFT) / steps.pull()

    def auto_delta(self, steps: StepSizes, reg: float) -> float:
        """Return the growth that leaves half of the weakest channel's gamma after 70 % of the run.

        Not near zero: lambda grows with (Imax - I) / (Imax - Imin), and one strong channel makes
        all others of its group weak. In two trained YOLOv5n the median channel had about .7 of the
        weakest one's growth, so that emptying the weakest takes the network along. 0 where reg
        does alone, infinite in a run too short to grow.
        """
        early = steps.early()
        needed = -math.log(WEAK_LEFT) - early.pull(reg)
        growth = early.growth(1.0, self.delta_every)
        return max(needed, 0.0) / growth if growth else math.inf

    def forecast(self, steps: StepSizes, start: float, reg: float | None) -> Forecast:
        """See Penalty; auto settles the growth too."""
        used = self.auto_reg(steps, start) if reg is None else reg
        wanted = self.auto_delta(steps, used)
        if reg is None and wanted < math.inf:
            self.delta_reg = wanted
        return self._forecast(steps, start, used, wanted)

    def strength(self, reg: float) -> float:
        """Return the growth."""
        return self.delta_reg

    def mean_strength(self, reg: float) -> float:
        """Return the mean lambda."""
        return reg if self._factors is None else float(self._factors.mean())

    def state_dict(self) -> dict[str, Any]:
        """Return the lambdas, their growth, and the number of steps."""
        factors = None if self._factors is None else self._factors.clone()
        return {"factors": factors, "steps": self._steps, "delta_reg": self.delta_reg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Penalty."""
        self._factors, self._steps = state["factors"], state["steps"]
        self.delta_reg = state["delta_reg"]
