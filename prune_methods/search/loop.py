"""Shrink masks in small steps, scoring the masked model anew each time, until the target is met."""

from bisect import bisect_left

import numpy as np

from prune_methods.criteria.base import Criterion
from prune_methods.criteria.scoring import Evidence, GroupScores
from prune_methods.search.cost import Cost
from prune_methods.search.plan import (
    STEPS,
    CostFn,
    EvidenceSource,
    Limits,
    OnStep,
    Pace,
    Plan,
    Step,
    Target,
    floors,
    keep_first,
)

TINY = 1e-12  # cost of a channel that frees nothing


def reachable_speed_up(cost: Cost, limits: Limits, cost_fn: CostFn | None = None) -> float:
    """Return the best speed-up within the limits, in MACs or in `cost_fn`: all groups at their
    floor."""
    index, amount = cost.index, cost_fn or cost.macs
    smallest = keep_first(index, floors(index.sizes, limits, index.per_channel))
    return amount(index.all_kept()) / amount(smallest)


def shrink_masks(
    cost: Cost,
    criterion: Criterion,
    target: Target,
    limits: Limits,
    pace: Pace,
    source: EvidenceSource | None = None,
    on_step: OnStep | None = None,
) -> Plan:
    """Find masks that reach the target with as few channels removed as the ranking allows.

    Channels rank by their scores whatever cost the target counts. The last step is bisected and
    filled up again: any of its channels put back (a block of `round_to`) would miss the target.
    The search ends without having met the target after `pace.max_steps`, or where every group is
    at its floor.

    Args:
        cost: MACs by mask; knows the model and its channels.
        criterion: the pruning method.
        target: the speed-up, and the cost that counts.
        limits: bounds of every group.
        pace: size and number of steps, and what the ranking compares.
        source: tables for a criterion that looks at data; None for one that needs weights only.
        on_step: called after each step with its row and the masks.

    Returns:
        The plan; `plan.met` tells whether the target was reached.
    """
    masks = _ShrinkingMasks(cost, criterion, target, limits, source)
    goal = masks.amount(masks.index.all_kept()) / target.speed_up
    steps: list[Step] = []
    for number in range(1, pace.max_steps + 1):
        if masks.amount(masks.kept()) <= goal:
            break
        if source and source.every and number > 1 and (number - 1) % source.every == 0:
            masks.collect()
        order = masks.next_channels(number, pace)
        if not len(order) and masks.at_floor():
            break
        masks.remove(order, goal)
        steps.append(masks.state(number))
        if on_step:
            on_step(steps[-1], masks.index.by_group(masks.kept()))
    return masks.plan(target, steps)


class _ShrinkingMasks:
    """The masks on their way down: `removed_at[c]` tells when flat channel c went, or STAYS."""

    STAYS = np.iinfo(np.int64).max

    def __init__(
        self,
        cost: Cost,
        criterion: Criterion,
        target: Target,
        limits: Limits,
        source: EvidenceSource | None,
    ):
        self.cost, self.criterion, self.index = cost, criterion, cost.index
        self.amount: CostFn = target.cost_fn or cost.macs
        self.source, self.round_to = source, limits.round_to
        self.floors = floors(self.index.sizes, limits, self.index.per_channel)
        self.removed_at = np.full(self.index.total, self.STAYS)
        self.collect()

    def collect(self) -> None:
        """Make the tables of scores from the model as masked now."""
        evidence: Evidence | None = None
        if self.source:
            evidence = self.source.collect(self.index.by_group(self.marked()))
        self.group_scores = GroupScores(self.index, self.criterion, evidence)

    def marked(self) -> np.ndarray:
        """Return the flat mask before rounding."""
        return np.append(self.removed_at == self.STAYS, True)

    def kept(self) -> np.ndarray:
        """Return the flat mask, widths rounded up to multiples: the last to go come back first."""
        keep = self.marked()
        if self.round_to == 1:
            return keep
        index = self.index
        for start, size, left in zip(index.starts, index.sizes, index.counts(keep), strict=True):
            width = min(-(-left // self.round_to) * self.round_to, size)
            last_first = np.argsort(-self.removed_at[start : start + size], kind="stable")
            keep[start + last_first[:width]] = True
        return keep

    def at_floor(self) -> bool:
        """Tell whether every group is at its floor."""
        return bool((self.index.counts(self.marked()) <= self.floors).all())

    def next_channels(self, number: int, pace: Pace) -> np.ndarray:
        """Return the flat channels that step `number` removes, the lowest score first.

        Ties go by number, so that the count is exact. Ranked within layers, the weakest channels of
        all groups come first, then all second weakest.
        """
        keep = self.marked()
        left = self.index.counts(keep)
        scores = self.group_scores.scores(keep)
        if pace.per:
            scores = scores / np.maximum(pace.per(keep), TINY)
        rank = self._rank_in_group(scores)
        group = self.index.group_of
        free = rank < (left - self.floors)[group]
        share = 1 - number / STEPS
        if pace.per_layer:
            to_remove = left - (self.index.sizes * share).astype(int)
            chosen = np.flatnonzero(free & (rank < to_remove[group]))
            return chosen[np.lexsort((chosen, rank[chosen]))]
        to_remove = left.sum() - int(self.index.total * share)
        chosen = np.flatnonzero(free)
        return chosen[np.argsort(scores[chosen], kind="stable")][: max(to_remove, 0)]

    def _rank_in_group(self, scores: np.ndarray) -> np.ndarray:
        """Return 0 for the lowest score of each group; channels that are gone come last."""
        order = np.lexsort((scores, self.index.group_of))
        rank = np.empty(self.index.total, dtype=int)
        rank[order] = self.index.within_group()
        return rank

    def remove(self, order: np.ndarray, goal: float) -> None:
        """Remove the channels in their order, but only as many as the goal needs."""
        before = self.removed_at
        first = int((before != self.STAYS).sum())

        def after(number: int) -> np.ndarray:
            removed_at = before.copy()
            removed_at[order[:number]] = first + np.arange(number)
            return removed_at

        def meets(number: int) -> bool:
            self.removed_at = after(number)
            return self.amount(self.kept()) <= goal

        if not meets(len(order)):
            return
        needed = bisect_left(range(len(order)), True, key=meets)
        self.removed_at = after(needed)
        self._put_back(order[: needed - 1], goal)

    def _put_back(self, order: np.ndarray, goal: float) -> None:
        """Return the best channels of this step as far as the goal allows.

        The last channel to go may have been a costly one.
        """
        for channel in order[::-1]:
            before = self.removed_at[channel]
            self.removed_at[channel] = self.STAYS
            if self.amount(self.kept()) > goal:
                self.removed_at[channel] = before

    def state(self, number: int) -> Step:
        """Return the row of a step."""
        return step_of(self.cost, self.kept(), number)

    def plan(self, target: Target, steps: list[Step]) -> Plan:
        """Return the plan with the masks as they are."""
        keep, cost_fn = self.kept(), target.cost_fn
        reached = cost_fn(self.index.all_kept()) / cost_fn(keep) if cost_fn else None
        masks, macs = self.index.by_group(keep), self.cost.macs(keep)
        return Plan(masks, tuple(steps), self.cost.base, macs, target.speed_up, reached)


def step_of(cost: Cost, keep: np.ndarray, number: int) -> Step:
    """Return the row of a step from the flat mask after it."""
    macs = cost.macs(keep)
    return Step(number, int(keep[:-1].sum()), cost.parameters(keep), macs, cost.base / macs)
