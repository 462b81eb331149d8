"""PAGCP: a greedy search for the widths that the tasks' losses can bear (Ye et al., TPAMI 2023,
arXiv 2303.11923).

A unit is a group of coupled channels. One unit after another loses its weakest channels, as many as
keep every task's loss on a calibration set within a tolerance; what costs much loss and saves
little is undone at the end. docs/pagcp.md explains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from prune_methods.criteria.base import Array, Criterion
from prune_methods.criteria.scoring import GroupScores
from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import ChannelGroup
from prune_methods.search.cost import Cost
from prune_methods.search.loop import Limits, Plan, Step, floors
from prune_methods.search.pagcp_rules import (
    Cut,
    PagcpSettings,
    cheapest,
    decay,
    last_accepted,
    width_after,
    widths_to_try,
)
from utils.errors import UserError

PROBE = 6  # twentieths of a unit whose saving decides on the order: 30 %
# a loss below it belongs to a task that does not exist, as the classification of a single class
NOTHING = 1e-6

TaskLosses = Callable[[Masks, Array | None], Array | None]
"""(masks, ceilings) -> float64 (tasks,), each not negative; may give None as soon as one is sure to
end above its ceiling.
"""


@dataclass(frozen=True)
class Visit:
    """A unit that was tried, and the model after it; `after` equals `before` where no ratio was
    accepted.
    """

    round: int  # from 1
    name: str
    before: int  # channels
    after: int
    tolerance: float
    losses: Array
    speed_up: float


def search_masks(
    model: nn.Module,
    groups: list[ChannelGroup],
    criterion: Criterion,
    losses: TaskLosses,
    target: float,
    *,
    settings: PagcpSettings | None = None,
    limits: Limits | None = None,
    imgsz: int = 640,
    on_step: Callable[[Step, Masks], None] | None = None,
    on_unit: Callable[[Visit], None] | None = None,
) -> Plan:
    """Masks that the search finds; it ends as soon as `target` is met, to one channel (or block of
    `round_to`) exact.

    A step of the plan is a unit that was cut, and one more where `topk` undid some. Ends without
    having met the target after the last round, or after one that cut nothing. `UserError` where the
    losses of the model are not finite.
    """
    search = _Search(
        model,
        groups,
        criterion,
        losses,
        target,
        settings or PagcpSettings(),
        limits or Limits(),
        imgsz,
    )
    search.on_step, search.on_unit = on_step, on_unit
    for number in range(1, search.settings.rounds + 1):
        if not search.round(number) or search.met(search.keep):
            break
    macs = search.cost.macs(search.keep)
    return Plan(
        search.index.by_group(search.keep), tuple(search.steps), search.cost.base, macs, target
    )


class _Search:
    """`keep` is the flat mask of what all rounds so far have left."""

    on_step: Callable[[Step, Masks], None] | None = None
    on_unit: Callable[[Visit], None] | None = None

    def __init__(
        self,
        model: nn.Module,
        groups: list[ChannelGroup],
        criterion: Criterion,
        losses: TaskLosses,
        target: float,
        settings: PagcpSettings,
        limits: Limits,
        imgsz: int,
    ):
        self.losses, self.settings, self.round_to = losses, settings, limits.round_to
        self.index = ChannelIndex(model, groups)
        self.cost = Cost(model, self.index, imgsz)
        self.sums = GroupScores(model, self.index, criterion)
        self.floors = floors(self.index.sizes, limits, self.index.per_channel)
        self.goal = self.cost.base / target
        self.decay = (
            decay(settings.initial_rate, settings.initial_thres, len(groups))
            if settings.schedule
            else 1.0
        )
        self.keep = self.index.all_kept()
        self.steps: list[Step] = []

    def met(self, keep: Array) -> bool:
        """Whether the target is."""
        return self.cost.macs(keep) <= self.goal

    def round(self, number: int) -> bool:
        """Try every unit once; whether anything was cut."""
        running, cuts, kept = self.keep.copy(), [], []
        base = now = self._base_losses()
        exists = base > NOTHING
        for unit in self.order():
            tolerance = self.settings.initial_rate * self.decay ** len(cuts)
            cut = self._largest_cut(
                running, unit, np.where(exists, base * (1 + tolerance), np.inf), now
            )
            self._show(number, unit, running, cut, tolerance, now)
            if cut is None:
                continue
            running[cut.removed] = False
            base, now = np.maximum(base, cut.losses), cut.losses
            cuts.append(cut)
            earlier, kept = kept, cheapest(cuts, self.settings.topk)
            if self.met(self._without(kept)):
                newcomer = next(cut for cut in kept if all(cut is not other for other in earlier))
                self.keep = self._trimmed([cut for cut in kept if cut is not newcomer], newcomer)
                self._record(self.keep)
                return True
            self._record(running)
        self.keep = self._without(kept)
        if len(kept) < len(cuts):
            self._record(self.keep)
        return bool(kept)

    def order(self) -> Array:
        """Units by the MACs that 30 % of each would save, the largest first: it gets the largest
        tolerance.

        So where tolerances rise (lambda > 1) the largest comes last.
        """
        now, scores = self.cost.macs(self.keep), self.sums.scores(self.keep)
        savings = []
        for unit in range(len(self.index.sizes)):
            weakest = self._weakest(scores, self.keep, unit)
            width = width_after(len(weakest), PROBE, self.floors[unit], self.round_to)
            savings.append(
                now - self.cost.macs(_removed(self.keep, weakest[: len(weakest) - width]))
            )
        sign = 1 if self.decay > 1 else -1
        return np.argsort(sign * np.array(savings), kind="stable")

    def _base_losses(self) -> Array:
        found = self.losses(self.index.by_group(self.keep), None)
        if found is None or not np.isfinite(found).all() or not (found > NOTHING).any():
            raise UserError(
                f"pagcp: the losses on training images are {found}; take a checkpoint that has not"
                " diverged"
            )
        return found

    def _largest_cut(self, running: Array, unit: int, ceilings: Array, now: Array) -> Cut | None:
        weakest = self._weakest(self.sums.scores(running), running, unit)
        widths = widths_to_try(len(weakest), self.floors[unit], self.round_to)

        def attempt(place: int) -> Cut | None:
            gone = weakest[: len(weakest) - widths[place]]
            trial = _removed(running, gone)
            found = self.losses(self.index.by_group(trial), ceilings)
            if found is None or not (found <= ceilings).all():
                return None
            saved = self.cost.macs(running) - self.cost.macs(trial)
            return Cut(unit, gone, found, float((found - now).sum()) / max(saved, 1))

        return last_accepted(attempt, len(widths))

    def _trimmed(self, others: list[Cut], last: Cut) -> Array:
        """The mask of the others and as little of the last cut as meets the target; in full it
        does.
        """
        without = self._without(others)
        before = int(without[self._channels(last.unit)].sum())
        trials = range(1, len(last.removed))
        allowed = (
            n
            for n in trials
            if (before - n) % self.round_to == 0 and self.met(_removed(without, last.removed[:n]))
        )
        return _removed(without, last.removed[: next(allowed, len(last.removed))])

    def _show(
        self, number: int, unit: int, running: Array, cut: Cut | None, tolerance: float, now: Array
    ) -> None:
        if self.on_unit is None:
            return
        gone, losses = (np.zeros(0, dtype=int), now) if cut is None else (cut.removed, cut.losses)
        before = int(running[self._channels(unit)].sum())
        speed_up = self.cost.base / self.cost.macs(_removed(running, gone))
        name = self.index.groups[unit].name
        self.on_unit(Visit(number, name, before, before - len(gone), tolerance, losses, speed_up))

    def _record(self, keep: Array) -> None:
        macs = self.cost.macs(keep)
        channels, parameters = int(keep[:-1].sum()), self.cost.parameters(keep)
        self.steps.append(
            Step(len(self.steps) + 1, channels, parameters, macs, self.cost.base / macs)
        )
        if self.on_step:
            self.on_step(self.steps[-1], self.index.by_group(keep))

    def _without(self, cuts: Sequence[Cut]) -> Array:
        return _removed(
            self.keep, np.concatenate([np.zeros(0, dtype=int), *(cut.removed for cut in cuts)])
        )

    def _channels(self, unit: int) -> slice:
        start = self.index.starts[unit]
        return slice(start, start + self.index.sizes[unit])

    def _weakest(self, scores: Array, keep: Array, unit: int) -> Array:
        """Flat channels that the unit still has, the lowest score first."""
        span = self._channels(unit)
        left = span.start + np.flatnonzero(keep[span])
        return left[np.argsort(scores[left], kind="stable")]


def _removed(keep: Array, channels: Array) -> Array:
    """A copy of the flat mask without these channels."""
    left = keep.copy()
    left[channels] = False
    return left
