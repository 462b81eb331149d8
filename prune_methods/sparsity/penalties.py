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

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.sparsity.step_sizes import StepSizes
from utils.engine.trainer import MAX_GRAD_NORM
from utils.errors import UserError
from utils.registry import Registry

PENALTIES = Registry("sparse training method")

SMALL = 0.01  # |gamma| below this counts as gone


@dataclass(frozen=True)
class Forecast:
    """How far a penalty alone gets in a run.

    Attributes:
        start: mean |gamma| before the run.
        reg: strength in use.
        expected: gamma left by the penalty alone: (weakest channel of a group, strongest).
        strength: value of `option` in use.
        wanted: value of `option` with which the penalty alone would get to its aim, whatever
            clipping lets through. `--reg auto` takes it, at most `cap`.
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
        if wanted >= self.cap:
            wanted = max(wanted, start / _early_pull(steps))
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


def trainable(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights of the layers that are not frozen; `UserError` where all are."""
    parameters = dict(model.named_parameters())
    weights: dict[str, Tensor] = {name: parameters[f"{name}.weight"] for name in layers}
    found = {name: weight for name, weight in weights.items() if weight.requires_grad}
    if not found:
        raise UserError("--freeze: everything that sparse training would work on is frozen")
    return found
