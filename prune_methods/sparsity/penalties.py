"""What sparse training adds to the gradients before each optimizer step: one penalty a method.

All work on whole vectors: every channel of the model has a place in one flat list (`index.py`), and
a step is a handful of operations a layer. A penalty adds to `.grad` only, so the same code is right
under accumulation, mixed precision (after unscale) and data parallel training (every rank adds the
same). `estimate_gamma.py` tells how far a penalty moves gamma in a given run.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.groups.graph import ChannelGroup
from utils.engine.trainer import MAX_GRAD_NORM
from utils.errors import UserError
from utils.registry import Registry

PENALTIES = Registry("sparse training method")

# group_sl: the weakest channel of a group is pulled 2^ALPHA times as hard as the strongest
# (DepGraph)
ALPHA = 4.0
EQUAL = 1e-6  # scores whose spread, relative to the largest, is below this are taken as equal
TINY = 1e-12  # stands for a norm of zero


class Penalty(ABC):
    """Names are taken from the model when it is made, tensors when training starts (`bind`)."""

    quadratic = False
    """False: pulls at a constant rate, gamma falls linearly and reaches zero.

    True: in proportion to the weight.
    """
    cap = math.inf
    """Strongest reg that clipping the gradient lets through: with more the penalty's own gradient
    is longer than allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        ignored: Collection[str] = (),
        *,
        delta_reg: float = 1e-4,
        delta_every: int = 10,
    ):
        """`groups` as `prune_methods.groups` found them, `ignored` names of modules that are left
        alone; more for group_reg.
        """
        self.index = ChannelIndex(model, groups)
        self.delta_reg, self.delta_every = delta_reg, delta_every
        self.norms = [
            name
            for name, m in model.named_modules()
            if isinstance(m, _BatchNorm) and m.affine and name not in ignored
        ]
        """Batch norms whose gammas are pulled."""
        self.layers = self.norms
        """Layers whose `weight` is pulled; weight decay has to be off for them."""
        if not self.quadratic:
            self.cap = MAX_GRAD_NORM / math.sqrt(
                max(sum(len(self.index.outs[name]) for name in self.norms), 1)
            )
        if not self.norms:
            raise UserError(
                "sparse training: the model has no batch norm with a gamma; give a training form,"
                " not a fused model"
            )

    @abstractmethod
    def bind(self, model: nn.Module) -> None:
        """Take hold of the model's trainable tensors, on their device."""

    @abstractmethod
    def add(self, reg: float) -> None:
        """Add the term of strength `reg` to `.grad`; frozen layers have none and are left out."""

    def mean_strength(self, reg: float) -> float:
        """The mean factor at work where the schedule says `reg`."""
        return reg

    def group_norms(self, model: nn.Module) -> dict[str, Tensor]:
        """Batch norm -> norm of all coupled slices of each of its channels; nothing where only
        gamma is pulled.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back, before `bind`."""
        assert not state, "a penalty that keeps something takes it back"


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


class _SlicePenalty(Penalty):
    """c_k * w on all slices (filters, input columns, gammas) that are coupled at channel k; `add`
    of a method gives c.
    """

    quadratic = True

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        ignored: Collection[str] = (),
        **more: Any,
    ):
        super().__init__(model, groups, ignored, **more)
        if not groups:
            raise UserError(
                "sparse training: the model has no channels that could be pruned; see why with"
                " prune.py --dry-run"
            )
        parameters, index = dict(model.named_parameters()), self.index
        fixed = np.array([index.total])
        places = {
            n: np.concatenate((index.outs[n], index.ins.get(n, fixed)))
            for n in index.outs
            if f"{n}.weight" in parameters
        }
        self.layers = [
            n for n, place in places.items() if n not in ignored and (place < index.total).any()
        ]
        self.norms = [n for n in self.norms if n in self.layers]

    def bind(self, model: nn.Module) -> None:
        """See Penalty."""
        found = _trainable(model, self.layers)
        self._names, self._weights = list(found), list(found.values())
        self._sides = [[s[n] for s in (self.index.outs, self.index.ins) if n in s] for n in found]
        flat = [place for sides in self._sides for place in sides]
        device = self._weights[0].device
        self._places, self._sizes = (
            torch.from_numpy(np.concatenate(flat)).to(device),
            [len(place) for place in flat],
        )
        self._group_of = torch.from_numpy(self.index.group_of).to(device)

    def _scores(self, weights: Sequence[Tensor]) -> Tensor:
        """Sum of w^2 over the coupled slices of each flat channel."""
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
        """(max - score) / (max - min) within each group: 0 for the strongest, 1 for the weakest; 0
        where all are equal.
        """
        empty, place = scores.new_zeros(len(self.index.groups)), self._group_of
        top = empty.scatter_reduce(0, place, scores, "amax", include_self=False)
        spread = top - empty.scatter_reduce(0, place, scores, "amin", include_self=False)
        spread = spread.where(spread > EQUAL * top, torch.inf)
        return (top[place] - scores) / spread[place]

    def _pull(self, factors: Tensor) -> None:
        """Add factor * weight to each slice; a weight in two groups (output of one, input of
        another) gets both.
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
        return {
            name: norms[torch.from_numpy(self.index.outs[name]).to(norms.device)]
            for name in self.norms
        }


@PENALTIES.register("group_sl")
class GroupSLPenalty(_SlicePenalty):
    """reg * g_k * w on all coupled slices, g_k = 2^(4 * (Imax - I_k) / (Imax - Imin)) (DepGraph,
    Fang et al., CVPR 2023, eq. 4).

    I_k is the norm of all slices that are coupled at k. In a group of equal scores every g is 1.
    """

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        self._pull(reg * torch.exp2(ALPHA * self._weakness(self._scores(self._weights).sqrt())))


@PENALTIES.register("group_reg")
class GroupRegPenalty(_SlicePenalty):
    """lambda_k * w on all coupled slices; lambda_k starts at reg and grows (Growing Regularization,
    Wang et al., ICLR 2021).

    Every `delta_every` optimizer steps lambda_k grows by delta_reg * (Imax - I_k) / (Imax - Imin),
    I_k the sum of w^2 of the slices: the weakest channel of a group by delta_reg, the strongest not
    at all.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        ignored: Collection[str] = (),
        **more: Any,
    ):
        super().__init__(model, groups, ignored, **more)
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

    def mean_strength(self, reg: float) -> float:
        """The mean lambda."""
        return reg if self._factors is None else float(self._factors.mean())

    def state_dict(self) -> dict[str, Any]:
        """The lambdas, how fast they grow, and the number of steps."""
        factors = None if self._factors is None else self._factors.clone()
        return {"factors": factors, "steps": self._steps, "delta_reg": self.delta_reg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Penalty."""
        self._factors, self._steps, self.delta_reg = (
            state["factors"],
            state["steps"],
            state["delta_reg"],
        )
