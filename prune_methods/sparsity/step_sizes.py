"""How far a constant gradient moves a weight in each step of a run, known before the run starts.

SGD with momentum m moves a weight by about lr / (1 - m) for every step in which a constant
gradient of 1 acts on the weight. A penalty that pulls with strength r so moves gamma by the sum of
r * lr / (1 - m) over the steps, if nothing else acts on gamma. The loss pulls back, and clipping
the gradient scales both down: the sum is the most that can happen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.engine.optim import Schedule

AUTO_SHARE = (
    0.7  # of the run after which `--reg auto` has gamma at zero; the rest trains what is left
)
Decay = Callable[[int], float]


def decay_factor(kind: str, end: float, epochs: int) -> Decay:
    """Return the factor on reg by epoch.

    `linear` and `cosine` fall from 1 at the first epoch to `end` at the last; `constant` stays 1.
    """

    def factor(epoch: int) -> float:
        if kind == "constant" or epochs == 1:
            return 1.0
        progress = epoch / (epochs - 1)
        left = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return end + left * (1 - end)

    return factor


@dataclass(frozen=True)
class StepSizes:
    """The optimizer steps of a run.

    Attributes:
        moves: float (steps,), how far a constant gradient of 1 moves a weight.
        factors: float (steps,), the factor on reg.
    """

    moves: np.ndarray
    factors: np.ndarray

    def pull(self, reg: float = 1.0, cap: float = math.inf) -> float:
        """Return how far a penalty of strength `reg`, at most `cap`, moves gamma."""
        return float((self.moves * np.minimum(reg * self.factors, cap)).sum())

    def growth(self, delta: float, every: int) -> float:
        """Return how far a strength that grows by `delta` each `every` steps moves gamma."""
        return float((self.moves * (delta * (np.arange(len(self.moves)) // every))).sum())

    def early(self) -> "StepSizes":
        """Return the first 70 % of the steps, after which `--reg auto` has gamma at zero."""
        steps = max(math.ceil(AUTO_SHARE * len(self.moves)), 1)
        return StepSizes(self.moves[:steps], self.factors[:steps])


def step_sizes(schedule: Schedule, epochs: int, factor: Decay) -> StepSizes:
    """Return the steps of a run: warm-up, accumulation, learning rate, momentum, decay of reg."""
    moves: list[float] = []
    factors: list[float] = []
    for epoch in range(epochs):
        strength, waiting = factor(epoch), 0
        for batch in range(schedule.batches):
            setting = schedule.at(epoch * schedule.batches + batch)
            waiting += 1
            if waiting >= setting.accumulate or batch + 1 == schedule.batches:
                moves.append(setting.lrs[-1] / (1 - setting.momentum))
                factors.append(strength)
                waiting = 0
    return StepSizes(np.array(moves), np.array(factors))
