"""PAGCP: a greedy search for the widths that the tasks' losses can bear.

Source: Ye et al., TPAMI 2023, arXiv 2303.11923; docs/pagcp.md explains.

A unit is a group of coupled channels. One unit after another loses its weakest channels, as many
as keep the loss of every task on a calibration set within a tolerance. Cuts that cost much loss
and save little are undone at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prune_methods.criteria.base import Array, Criterion
from prune_methods.criteria.scoring import GroupScores
from prune_methods.groups.channel_index import Masks
from prune_methods.search.cost import Cost
from prune_methods.search.loop import step_of
from prune_methods.search.pagcp_rules import (
    Cut,
    PagcpSettings,
    cheapest,
    decay,
    last_accepted,
    width_after,
    widths_to_try,
)
from prune_methods.search.plan import Limits, OnStep, Plan, Step, Target, floors
from utils.errors import UserError

PROBE = 6  # twentieths of a unit whose saving decides on the order: 30 %
NOTHING = 1e-6  # a loss below it belongs to no task, e.g. the classification of a single class

TaskLosses = Callable[[Masks, Array | None], Array | None]
"""(masks, ceilings) -> float64 (tasks,), not negative; None may stand for "above a ceiling"."""


@dataclass(frozen=True)
class Visit:
    """A unit that was tried, and the model after it.

    Attributes:
        round: number of the round, from 1.
        name: name of the unit's group.
        before, after: channels; alike where no ratio was accepted.
        tolerance: share by which a loss was allowed to rise.
        losses: of each task after the visit.
        speed_up: MACs of the whole model over those after the visit.
    """

    round: int
    name: str
    before: int
    after: int
    tolerance: float
    losses: Array
    speed_up: float


@dataclass(frozen=True)
class Watchers:
    """Functions called while the search runs: after each cut, and after each unit that
    was tried.
    """

    on_step: OnStep | None = None
    on_unit: Callable[[Visit], None] | None = None


def search_by_losses(
    cost: Cost,
    criterion: Criterion,
    losses: TaskLosses,
    target: Target,
    settings: PagcpSettings,
    limits: Limits,
    watchers: Watchers | None = None,
) -> Plan:
    """Search for masks; end as soon as the target is met, exact to a channel or block of
    `round_to`.

    A step of the plan is a unit that was cut, and one more where `topk` undid some. The search
    ends without having met the target after the last round, or after one that cut nothing.

    Args:
        cost: MACs by mask; knows the model and its channels.
        criterion: ranks the channels within each unit.
        losses: losses of the tasks by mask.
        target: the speed-up in MACs.
        settings: tolerances and rounds.
        limits: bounds of every unit.
        watchers: functions to call on the way.

    Returns:
        The plan; `plan.met` tells whether the target was reached.

    Raises:
        UserError: where the losses of the model are not finite.
    """
    search = _Search(cost, criterion, losses, settings, limits, watchers or Watchers())
    search.goal = cost.base / target.speed_up
    for number in range(1, settings.rounds + 1):
        if not search.round(number) or search.met(search.keep):
            break
    masks, macs = cost.index.by_group(search.keep), cost.macs(search.keep)
    return Plan(masks, tuple(search.steps), cost.base, macs, target.speed_up)


class _Search:
    """State of the search: `keep` is the flat mask that all rounds so far have left."""

    goal = 0.0  # MACs

    def __init__(
        self,
        cost: Cost,
        criterion: Criterion,
        losses: TaskLosses,
        settings: PagcpSettings,
        limits: Limits,
        watchers: Watchers,
    ):
        self.cost, self.index = cost, cost.index
        self.losses, self.settings, self.round_to = losses, settings, limits.round_to
        self.watchers = watchers
        self.group_scores = GroupScores(self.index, criterion)
        self.floors = floors(self.index.sizes, limits, self.index.per_channel)
        self.decay = 1.0
        if settings.schedule:
            rate, threshold = settings.initial_rate, settings.initial_thres
            self.decay = decay(rate, threshold, len(self.index.groups))
        self.keep = self.index.all_kept()
        self.steps: list[Step] = []

    def met(self, keep: Array) -> bool:
        """Tell whether a flat mask meets the target."""
        return self.cost.macs(keep) <= self.goal

    def round(self, number: int) -> bool:
        """Try every unit once; tell whether anything was cut."""
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
        """Return the units by the MACs that 30 % of each would save, the largest first.

        The first unit gets the largest tolerance; where tolerances rise (lambda > 1) the largest
        unit therefore comes last.
        """
        now, scores = self.cost.macs(self.keep), self.group_scores.scores(self.keep)
        savings = []
        for unit in range(len(self.index.sizes)):
            weakest = self._weakest(scores, self.keep, unit)
            width = width_after(len(weakest), PROBE, self.floors[unit], self.round_to)
            trial = _removed(self.keep, weakest[: len(weakest) - width])
            savings.append(now - self.cost.macs(trial))
        sign = 1 if self.decay > 1 else -1
        return np.argsort(sign * np.array(savings), kind="stable")

    def _base_losses(self) -> Array:
        """Return the losses of the model that the rounds so far have left."""
        found = self.losses(self.index.by_group(self.keep), None)
        if found is None or not np.isfinite(found).all() or not (found > NOTHING).any():
            raise UserError(
                f"pagcp: the losses on training images are {found}; take a checkpoint that has not"
                " diverged"
            )
        return found

    def _largest_cut(self, running: Array, unit: int, ceilings: Array, now: Array) -> Cut | None:
        """Return the largest cut of a unit that keeps all losses below their ceilings, or None."""
        weakest = self._weakest(self.group_scores.scores(running), running, unit)
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
        """Return the mask of the other cuts and as little of the last one as meets the target."""
        without = self._without(others)
        before = int(without[self.index.span(last.unit)].sum())
        for number in range(1, len(last.removed)):
            trial = _removed(without, last.removed[:number])
            if (before - number) % self.round_to == 0 and self.met(trial):
                return trial
        return _removed(without, last.removed)

    def _show(
        self, visit: int, unit: int, running: Array, cut: Cut | None, tolerance: float, now: Array
    ) -> None:
        """Tell the watcher about a unit, in round `visit`."""
        if self.watchers.on_unit is None:
            return
        gone, losses = (np.zeros(0, dtype=int), now) if cut is None else (cut.removed, cut.losses)
        before = int(running[self.index.span(unit)].sum())
        speed_up = self.cost.base / self.cost.macs(_removed(running, gone))
        name, after = self.index.groups[unit].name, before - len(gone)
        self.watchers.on_unit(Visit(visit, name, before, after, tolerance, losses, speed_up))

    def _record(self, keep: Array) -> None:
        """Add a step, and tell the watcher."""
        self.steps.append(step_of(self.cost, keep, len(self.steps) + 1))
        if self.watchers.on_step:
            self.watchers.on_step(self.steps[-1], self.index.by_group(keep))

    def _without(self, cuts: Sequence[Cut]) -> Array:
        """Return the mask at the start of the round without the channels of these cuts."""
        gone = [np.zeros(0, dtype=int), *(cut.removed for cut in cuts)]
        return _removed(self.keep, np.concatenate(gone))

    def _weakest(self, scores: Array, keep: Array, unit: int) -> Array:
        """Return the flat channels that the unit still has, the lowest score first."""
        span = self.index.span(unit)
        left = span.start + np.flatnonzero(keep[span])
        return left[np.argsort(scores[left], kind="stable")]


def _removed(keep: Array, channels: Array) -> Array:
    """Return a copy of the flat mask without these channels."""
    left = keep.copy()
    left[channels] = False
    return left
