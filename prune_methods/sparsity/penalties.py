"""Terms that sparse training adds to the gradients before each optimizer step, a class a method.

A penalty works on whole vectors: every channel of the model has a place in one flat list
(`groups/channel_index.py`), and a step is a handful of operations a layer. A penalty adds to
`.grad` only, so the same code is right under accumulation, mixed precision (after unscale) and
data parallel training (every rank adds the same). docs/custom_penalty.md shows how to add one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.sparsity.step_sizes import StepSizes
from utils.engine.trainer import MAX_GRAD_NORM
from utils.errors import UserError
from utils.registry import Registry

PENALTIES = Registry("sparse training method")

SMALL = 0.01  # |gamma| below this counts as gone
ALPHA = 4.0  # group_sl: the weakest channel of a group is pulled 2^ALPHA times as hard (DepGraph)
STRONG_LEFT = 0.9  # share of gamma that group_reg's constant part leaves the strongest, with auto
WEAK_LEFT = 0.5  # share that group_reg, growing, leaves the weakest; most others are nearly as weak
EQUAL = 1e-6  # scores whose spread, relative to the largest, is below this are taken as equal
TINY = 1e-12  # stands for a norm of zero


@dataclass(frozen=True)
class Forecast:
    """How far a penalty alone gets in a run.

    Attributes:
        start: mean |gamma| before the run.
        reg: strength in use.
        expected: gamma left by the penalty alone: (weakest channel of a group, strongest).
        strength: value of `option` in use.
        wanted: value of `option` that `--reg auto` would choose.
        option: command-line option that makes the penalty stronger.
        cap: strongest value that clipping the gradient lets through.
        grows: whether the pull grows while training.
    """

    start: float
    reg: float
    expected: tuple[float, float]
    strength: float
    wanted: float
    option: str
    cap: float
    grows: bool


class Penalty(ABC):
    """A term on gammas or weights; by default a constant pull on every gamma.

    Names are taken from the model when the penalty is made, tensors when training starts (`bind`).
    A subclass writes `bind` and `add`. One that does not pull gamma at a constant rate also says
    how far gamma gets: `expected_gamma` and `auto_reg` (`QuadraticPenalty` does for c * w).
    """

    quadratic = False
    """Whether the pull is proportional to the weight, so that gamma never reaches zero."""
    cap = math.inf
    """Strongest reg that clipping lets through: with more the term alone is longer than allowed."""
    option = "--reg"
    """Command-line option that makes the penalty stronger."""
    grows = False
    """Whether the pull grows while training."""
    settings: tuple[str, ...] = ()
    """Options of train_sparse.py that the class takes as further keyword arguments."""

    def __init__(self, index: ChannelIndex, ignored: Collection[str] = ()):
        """List the layers to pull.

        Args:
            index: the channels of the model.
            ignored: names of modules that are left alone.

        Raises:
            UserError: where no batch norm has a gamma.
        """
        self.index = index
        self.norms = [
            name
            for name, m in index.model.named_modules()
            if isinstance(m, _BatchNorm) and m.affine and name not in ignored
        ]
        """Batch norms whose gammas are pulled."""
        self.layers = self.norms
        """Layers whose `weight` is pulled; weight decay has to be off for them."""
        if not self.norms:
            raise UserError(
                "sparse training: the model has no batch norm with a gamma; give a training form,"
                " not a fused model"
            )
        if not self.quadratic:
            gammas = sum(len(index.outs[name]) for name in self.norms)
            self.cap = MAX_GRAD_NORM / math.sqrt(max(gammas, 1))

    @abstractmethod
    def bind(self, model: nn.Module) -> None:
        """Take hold of the model's trainable tensors, on their device."""

    @abstractmethod
    def add(self, reg: float) -> None:
        """Add the term of strength `reg` to `.grad`; skip frozen layers, which have none."""

    def expected_gamma(self, steps: StepSizes, reg: float, start: float) -> tuple[float, float]:
        """Return what the penalty alone leaves of a gamma that begins at `start`.

        Returns:
            Gamma of the weakest channel of a group, and of the strongest.
        """
        left = max(start - steps.pull(reg, self.cap), 0.0)
        return left, left

    def auto_reg(self, steps: StepSizes, start: float) -> float:
        """Return the reg with which the penalty alone has gamma at zero after 70 % of the run.

        At most the strongest reg that clipping lets through.
        """
        return min(start / _early_pull(steps), self.cap)

    def forecast(self, steps: StepSizes, start: float, reg: float | None) -> Forecast:
        """Say how far the penalty gets; settle what None, `--reg auto`, means.

        Args:
            steps: the steps of the run.
            start: mean |gamma| before the run.
            reg: strength, None for auto.
        """
        wanted = self.auto_reg(steps, start)
        used = wanted if reg is None else reg
        return self._forecast(steps, start, used, wanted)

    def _forecast(self, steps: StepSizes, start: float, reg: float, wanted: float) -> Forecast:
        return Forecast(
            start=start,
            reg=reg,
            expected=self.expected_gamma(steps, reg, start),
            strength=self.strength(reg),
            wanted=wanted,
            option=self.option,
            cap=self.cap,
            grows=self.grows,
        )

    def strength(self, reg: float) -> float:
        """Return the value of `option` in use."""
        return reg

    def mean_strength(self, reg: float) -> float:
        """Return the mean factor at work where the schedule says `reg`."""
        return reg

    def group_norms(self, model: nn.Module) -> dict[str, Tensor]:
        """Return batch norm -> norm of all coupled slices of each of its channels.

        Empty where only gamma is pulled.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state back, before `bind`."""
        assert not state, "a penalty that keeps something takes it back"


def make_penalty(
    method: str,
    index: ChannelIndex,
    ignored: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Penalty:
    """Make the penalty of a method; hand on those of `settings` that its class takes."""
    kind = PENALTIES[method]
    given = settings or {}
    own = {name: value for name, value in given.items() if name in kind.settings}
    return kind(index, ignored, **own)


def _early_pull(steps: StepSizes) -> float:
    """Return how far reg 1 moves gamma in the first 70 % of the run."""
    pull = steps.early().pull()
    assert pull > 0, "a run without a step moves nothing"
    return pull


def _trainable(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {
        name: parameters[f"{name}.weight"]
        for name in layers
        if parameters[f"{name}.weight"].requires_grad
    }
    if not found:
        raise UserError("--freeze: everything that sparse training would work on is frozen")
    return found


@PENALTIES.register("slim")
class SlimPenalty(Penalty):
    """reg * sign(gamma) on every batch norm, zero at zero (Network Slimming, Liu et al., ICCV 2017,
    L1 subgradient).
    """

    def bind(self, model: nn.Module) -> None:
        """See Penalty."""
        self._gammas = list(_trainable(model, self.norms).values())

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        ready = [(gamma, gamma.grad) for gamma in self._gammas if gamma.grad is not None]
        signs = torch._foreach_sign([gamma for gamma, _ in ready])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_([grad for _, grad in ready], signs, alpha=reg)  # pyright: ignore[reportPrivateImportUsage]


@PENALTIES.register("group_slim")
class GroupSlimPenalty(Penalty):
    """reg * gamma_i / n_i, n_i the root mean square of the gammas of all batch norms that are
    coupled at channel i.

    That is the gradient of group lasso with its usual factor sqrt(size) (Yuan & Lin 2006): channels
    that can only be cut together go to zero together. With the mean in the root, equal gammas move
    as far as under `slim`, however many are coupled, so reg means the same for both; on a lone
    batch norm they are the same.
    """

    def bind(self, model: nn.Module) -> None:
        """A channel that is in no group is a group of its own."""
        found = _trainable(model, self.norms)
        self._gammas, places, own = list(found.values()), [], self.index.total
        for name in found:
            place = self.index.outs[name].copy()
            alone = place == self.index.total
            place[alone] = own + np.arange(alone.sum())
            own += int(alone.sum())
            places.append(place)
        device = self._gammas[0].device
        self._places = torch.from_numpy(np.concatenate(places)).to(device)
        self._sizes = [len(place) for place in places]
        self._counts = torch.bincount(self._places, minlength=own).clamp(min=1)

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        flat = torch.cat(self._gammas)
        squares = flat.new_zeros(len(self._counts)).index_add_(0, self._places, flat.square())
        norms = (squares / self._counts).sqrt_().clamp_(min=TINY)
        terms = (flat / norms[self._places]).split(self._sizes)
        for gamma, term in zip(self._gammas, terms, strict=True):
            if gamma.grad is not None:
                gamma.grad.add_(term, alpha=reg)


class QuadraticPenalty(Penalty):
    """A pull c * w, in proportion to the weight: gamma shrinks by a share in every step.

    `weakest_factor` is c / reg of the weakest channel of a group; the strongest has 1.
    """

    quadratic = True
    weakest_factor = 1.0

    def expected_gamma(self, steps: StepSizes, reg: float, start: float) -> tuple[float, float]:
        """See Penalty."""
        pull = steps.pull(reg)
        return start * math.exp(-pull * self.weakest_factor), start * math.exp(-pull)

    def auto_reg(self, steps: StepSizes, start: float) -> float:
        """Return the reg with which the weakest channel is at .01 after 70 % of the run."""
        needed = math.log(max(start / SMALL, 1.0))
        return needed / (_early_pull(steps) * self.weakest_factor)


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
        found = _trainable(model, self.layers)
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
