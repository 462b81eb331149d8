"""How far a penalty can move gamma in a given run, known before it starts, and what to say about it
afterwards.

SGD with momentum m moves a weight by about lr / (1 - m) for every step in which a constant gradient
of 1 acts on it. So a penalty that pulls with strength r moves gamma by the sum of r * lr / (1 - m)
over the run's steps, if nothing else acts on it. The loss pulls back, and clipping the gradient
scales both down: this is the most that can happen, not what will.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prune_methods.sparsity.penalties import ALPHA, GroupRegPenalty, Penalty
from utils.engine.optim import Schedule

SMALL = 0.01  # |gamma| below this counts as gone
# share of its gamma that group_reg's constant part leaves the strongest channel of a group, with
# auto
STRONG_LEFT = 0.9
# share that group_reg, growing, leaves the weakest; most of a group are nearly as weak and go with
# it
WEAK_LEFT = 0.5
# of the run after which `--reg auto` has gamma at zero, so that the rest trains what is left
AUTO_SHARE = 0.7
WORTH = 0.9  # of the best mAP; a last epoch below it is told
Decay = Callable[[int], float]


def decay_factor(kind: str, end: float, epochs: int) -> Decay:
    """Factor on reg by epoch: from 1 at the first to `end` at the last along a line or half a
    cosine; `constant` stays 1.
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
    """Of each optimizer step: `moves`, how far a constant gradient of 1 moves a weight, and
    `factors` on reg; both (steps,).
    """

    moves: np.ndarray
    factors: np.ndarray

    def pull(self, reg: float = 1.0, cap: float = math.inf) -> float:
        """How far a penalty of strength `reg` moves gamma; the gradient never pulls harder than
        `cap`.
        """
        return float((self.moves * np.minimum(reg * self.factors, cap)).sum())

    def early(self) -> "StepSizes":
        """Its first 70 %."""
        steps = max(math.ceil(AUTO_SHARE * len(self.moves)), 1)
        return StepSizes(self.moves[:steps], self.factors[:steps])


def step_sizes(schedule: Schedule, epochs: int, factor: Decay) -> StepSizes:
    """The steps of a run as its schedule has them: warm-up, accumulation, learning rate and
    momentum.
    """
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


def estimate_gamma(
    penalty: Penalty, steps: StepSizes, reg: float, start: float
) -> tuple[float, float]:
    """What `penalty` alone leaves of a gamma that begins at `start`: (of the weakest channel of a
    group, of the strongest).
    """
    if not penalty.quadratic:
        left = max(start - steps.pull(reg, penalty.cap), 0.0)
        return left, left
    weakest = steps.pull(reg) * _boost(penalty) + _growth(penalty, steps)
    return start * math.exp(-weakest), start * math.exp(-steps.pull(reg))


def auto_reg(penalty: Penalty, steps: StepSizes, start: float) -> float:
    """The reg with which `penalty` alone has gamma at zero after 70 % of the run, or the strongest
    that clipping lets through.

    A quadratic one never gets to zero: for group_sl it is .01 for the weakest channel of a group.
    group_reg pulls all channels alike by reg and only the weak ones more: reg is small there, and
    `auto_delta` does the rest.
    """
    early = steps.early()
    assert early.pull() > 0, "a run without a step moves nothing"
    if not penalty.quadratic:
        return min(start / early.pull(), penalty.cap)
    if isinstance(penalty, GroupRegPenalty):
        return -math.log(STRONG_LEFT) / steps.pull()
    return math.log(max(start / SMALL, 1.0)) / (early.pull() * _boost(penalty))


def auto_delta(penalty: GroupRegPenalty, steps: StepSizes, reg: float) -> float:
    """The growth with which, from `reg`, gamma is at half after 70 % of the run for the weakest
    channel of a group.

    Not near zero: it grows with (Imax - I) / (Imax - Imin), and one strong channel makes all others
    of its group weak. In two trained YOLOv5n the median channel had about .7 of the weakest one's
    growth, so that what empties the weakest takes the network along. 0 where reg does alone,
    infinite in a run too short to grow.
    """
    early = steps.early()
    needed = -math.log(WEAK_LEFT) - early.pull(reg)
    growth = _growth_of(1.0, penalty.delta_every, early)
    return max(needed, 0.0) / growth if growth else math.inf


def _boost(penalty: Penalty) -> float:
    return 1.0 if isinstance(penalty, GroupRegPenalty) else 2**ALPHA


def _growth(penalty: Penalty, steps: StepSizes) -> float:
    """The exponent that group_reg's growth adds for a channel that is the weakest of its group all
    the time.
    """
    return (
        _growth_of(penalty.delta_reg, penalty.delta_every, steps)
        if isinstance(penalty, GroupRegPenalty)
        else 0.0
    )


def _growth_of(delta: float, every: int, steps: StepSizes) -> float:
    return float((steps.moves * (delta * (np.arange(len(steps.moves)) // every))).sum())


def describe_estimate(
    reg: float,
    start: float,
    left: tuple[float, float],
    wanted: float,
    nominal: int,
    cap: float,
    delta: float | None = None,
) -> str:
    """The lines at the start of a run; `left` from `estimate_gamma`, `wanted` from `auto_reg`,
    `nominal` images make a step.

    With group_reg's `delta`, `wanted` is from `auto_delta`; there epochs do not count in
    proportion.
    """
    ends = (
        f"{left[0]:.2g}"
        if left[0] == left[1]
        else f"{left[0]:.2g} (weakest channel of a group) to {left[1]:.2g} (strongest)"
    )
    lines = [
        (
            f"in this run the penalty alone takes gamma from {start:.2g} to {ends}; the loss and"
            " clipping hold against it"
        ),
        (
            f"reg {reg:.3g} is added once a step to gradients that sum over {nominal} images; "
            f"at another nominal batch n the same is --reg {reg / nominal:.2g} x n"
        ),
    ]
    if delta is not None:
        lines.append(f"it grows by up to {delta:.2g} every few steps")
        if delta < wanted / 2:
            lines.append(
                f"that is weak: half at {AUTO_SHARE:.0%} of the run takes --delta-reg {wanted:.2g}"
                " (--reg auto)"
            )
    elif reg >= cap:
        lines.append(
            f"clipping lets through no more than reg {cap:.2g}: what is missing takes more epochs"
        )
    elif 0 < reg < wanted / 2:
        much = f"--reg {wanted:.2g} (--reg auto) or {wanted / reg:.2g}x the epochs"
        lines.append(f"that is weak: zero at {AUTO_SHARE:.0%} of the run takes {much}")
    return "\n".join(f"Sparsity: {line}" for line in lines)


@dataclass(frozen=True)
class Outcome:
    """Where a finished run has got to; means of |gamma|."""

    share: float  # of channels below .01
    speed_up: float  # from cutting just these
    start: float
    mean: float  # now
    expected: float  # from the penalty alone
    reg: float  # group_reg: the growth, delta
    wanted: float | None  # the value of `auto_reg` (`auto_delta`), None where it is unknown (Adam)
    clip: float  # mean factor of clipping the gradient, 0 to 1
    cap: float  # strongest reg that makes sense
    grows: bool = False  # group_reg
    best_map: float = 0.0  # mAP50-95 of the best epoch and of the last one
    last_map: float = 0.0

    def verdict(self) -> str:
        """In words, with what would help."""
        below = f"Verdict: {self.share:.0%} of channels have |gamma| below {SMALL:g}"
        if self.speed_up >= 1.1:
            return f"{below}; cutting just these gives {self.speed_up:.2f}x: {self._price()}"
        moved, pull = self.start - self.mean, self.start - self.expected
        text = f"{below}; gamma has moved by {moved:.2g} of {self.start:.2g}"
        if self.clip < 0.9:
            text += f" (gradients were clipped to {self.clip:.0%} on average)"
        if self.wanted is None or self.reg <= 0:
            return f"{text}: this run needs a stronger --reg or more epochs"
        if self.grows and self.reg >= self.wanted / 2:
            return (
                f"{text}: that is what group_reg aims at; what empties weak channels takes those"
                " that are needed along"
            )
        more = max(self.wanted / self.reg / max(self.clip, 0.01), 1.0)
        if more < 1.1:
            more = max(pull / moved, 1.1) if moved > 0 else 2.0
            text += f", the penalty alone would have moved it by {pull:.2g}: the loss holds it"
        stronger = min(more * self.reg, self.cap)
        option = "--delta-reg" if self.grows else "--reg"
        advice = f"{option} {stronger:.2g}, or " if stronger > 1.1 * self.reg else ""
        instead = "more epochs" if self.grows else f"{more:.2g}x the epochs"
        return f"{text}: this run needs {advice}{instead}"

    def _price(self) -> str:
        """What pruning will cost, and what sparse training has cost already."""
        if self.last_map >= WORTH * self.best_map:
            return "pruning up to that will cost little"
        return (
            "pruning up to that will cost little more, but the penalty itself took mAP50-95 from"
            f" {self.best_map:.3f} to {self.last_map:.3f}; a smaller --reg over more epochs takes"
            " less"
        )
