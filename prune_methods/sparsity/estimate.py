"""How far a penalty can move gamma in a run, and a verdict afterwards."""

from dataclasses import dataclass

from prune_methods.sparsity.penalties import SMALL, Forecast
from prune_methods.sparsity.step_sizes import AUTO_SHARE

ALIKE = 1.1  # factor up to which two strengths count as one
WORTH = 0.9  # of the best mAP; a last epoch below it is told


def describe_estimate(forecast: Forecast, nominal: int) -> str:
    """Return the lines at the start of a run; `nominal` images make a step.

    A growing penalty is not compared by epochs, since its pull is not proportional to them.
    """
    left, start, reg = forecast.expected, forecast.start, forecast.reg
    ends = f"{left[0]:.2g}"
    if left[0] != left[1]:
        ends += f" (weakest channel of a group) to {left[1]:.2g} (strongest)"
    lines = [
        f"in this run the penalty alone takes gamma from {start:.2g} to {ends}; the loss and"
        " clipping hold against it",
        f"reg {reg:.3g} is added once a step to gradients that sum over {nominal} images; at"
        f" another nominal batch n the same is --reg {reg / nominal:.2g} x n",
        *_advice(forecast),
    ]
    return "\n".join(f"Sparsity: {line}" for line in lines)


def _advice(forecast: Forecast) -> list[str]:
    """Return lines on a strength that is too weak, or that clipping holds back."""
    strength, wanted = forecast.strength, forecast.wanted
    weak = strength < wanted / 2
    if forecast.grows:
        lines = [f"it grows by up to {strength:.2g} every few steps"]
        if weak:
            lines.append(
                f"that is weak: half at {AUTO_SHARE:.0%} of the run takes {forecast.option}"
                f" {wanted:.2g} (--reg auto)"
            )
        return lines
    if strength >= forecast.cap:
        times = wanted / forecast.cap
        much = f"{times:.2g}x the epochs" if times > ALIKE else "more epochs"
        return [
            f"clipping lets through no more than reg {forecast.cap:.2g}: what is missing takes"
            f" {much}"
        ]
    if strength > 0 and weak:
        possible = min(wanted, forecast.cap)
        much = f"--reg {possible:.2g} (--reg auto) or {wanted / strength:.2g}x the epochs"
        return [f"that is weak: zero at {AUTO_SHARE:.0%} of the run takes {much}"]
    return []


@dataclass(frozen=True)
class Outcome:
    """Where a finished run has got to; means are of |gamma|.

    Attributes:
        share: of channels with |gamma| below .01.
        speed_up: from cutting just these channels.
        start: mean before the run.
        mean: mean now.
        expected: mean that the penalty alone would have left.
        reg: strength in use: reg, or the growth of a growing penalty.
        wanted: strength with which the penalty alone would get to its aim, None where unknown
            (Adam).
        clip: mean factor of clipping the gradient, 0 to 1.
        cap: strongest strength that makes sense.
        option: command-line option of the strength.
        grows: whether the penalty grows while training.
        best_map, last_map: mAP50-95 of the best epoch and of the last one.
    """

    share: float
    speed_up: float
    start: float
    mean: float
    expected: float
    reg: float
    wanted: float | None
    clip: float
    cap: float
    option: str = "--reg"
    grows: bool = False
    best_map: float = 0.0
    last_map: float = 0.0

    def verdict(self) -> str:
        """Return the outcome in words, and what would help."""
        below = f"Verdict: {self.share:.0%} of channels have |gamma| below {SMALL:g}"
        if self.speed_up >= 1.1:
            return f"{below}; cutting just these gives {self.speed_up:.2f}x: {self._cost()}"
        moved, pull = self.start - self.mean, self.start - self.expected
        text = f"{below}; gamma has moved by {moved:.2g} of {self.start:.2g}"
        if self.clip < 0.9:
            text += f" (gradients were clipped to {self.clip:.0%} on average)"
        if self.wanted is None or self.reg <= 0:
            return f"{text}: this run needs a stronger {self.option} or more epochs"
        if self.grows and self.reg >= self.wanted / 2:
            return (
                f"{text}: that is what group_reg aims at; what empties weak channels takes those"
                " that are needed along"
            )
        more = max(self.wanted / self.reg / max(self.clip, 0.01), 1.0)
        if more < ALIKE:
            more = max(pull / moved, ALIKE) if moved > 0 else 2.0
            if more > ALIKE:
                text += f", the penalty alone would have moved it by {pull:.2g}: the loss holds it"
        return f"{text}: this run needs {self._remedy(more)}"

    def _remedy(self, more: float) -> str:
        """Return what would move gamma `more` times as far."""
        stronger = min(more * self.reg, self.cap)
        advice = f"{self.option} {stronger:.2g}, or " if stronger > ALIKE * self.reg else ""
        return advice + ("more epochs" if self.grows else f"{more:.2g}x the epochs")

    def _cost(self) -> str:
        """Return what pruning will cost, and what sparse training has cost already."""
        if self.last_map >= WORTH * self.best_map:
            return "pruning up to that will cost little"
        return (
            "pruning up to that will cost little more, but the penalty itself took mAP50-95 from"
            f" {self.best_map:.3f} to {self.last_map:.3f}; a smaller --reg over more epochs takes"
            " less"
        )
