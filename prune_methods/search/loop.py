"""Shrink masks in small steps, scoring the masked model anew each time, until the target speed-up
is met.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from prune_methods.criteria.base import Criterion
from prune_methods.criteria.scoring import Evidence, GroupScores
from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import ChannelGroup
from prune_methods.search.cost import Cost

CostFn = Callable[[np.ndarray], float]
"""What a target counts instead of MACs: flat mask of all groups -> e.g. seconds of the model that
it leaves.
"""
# of equal size from all channels to none: 0.5 % of the channels a step, as Torch-Pruning's
# published runs
STEPS = 200


@dataclass(frozen=True)
class Limits:
    """What no group goes below; true clamps, whatever the step size.

    `round_to`: widths that were cut are multiples of it (a group that starts at another width may
    also stay whole).
    """

    min_channels: int = 4
    max_ratio: float = 1.0  # largest share of a group's channels that may go
    round_to: int = 1


@dataclass(frozen=True)
class Step:
    """The masked model after a step: parameters of the training form, MACs of the deployed one."""

    step: int
    channels: int
    parameters: int
    macs: int
    speed_up: float


@dataclass(frozen=True)
class Plan:
    """What to keep, how it came about, and whether the target was met.

    Where the target is not in MACs, `reached` is the ratio that counts, known to within `tolerance`
    of itself.
    """

    masks: Masks
    steps: tuple[Step, ...]
    base_macs: int
    macs: int
    target: float
    reached: float | None = None
    tolerance: float = 0.0

    @property
    def speed_up(self) -> float:
        """MACs of the deployed model before over after."""
        return self.base_macs / self.macs

    @property
    def ratio(self) -> float:
        """What the target counts, before over after."""
        return self.speed_up if self.reached is None else self.reached

    @property
    def met(self) -> bool:
        """Whether this ratio is at least the target, within its tolerance."""
        if self.reached is not None:
            return self.reached * (1 + self.tolerance) >= self.target
        return self.base_macs >= self.target * self.macs


def floors(sizes: np.ndarray, limits: Limits, per_channel: np.ndarray | int = 1) -> np.ndarray:
    """Channels that must stay in each group of the given sizes; each stands for `per_channel` of
    its narrowest layer.
    """
    by_ratio = np.ceil(sizes * (1 - limits.max_ratio) - 1e-9).astype(int)
    lowest = np.maximum(np.maximum(by_ratio, -(-limits.min_channels // per_channel)), 1)
    rounded = -(-lowest // limits.round_to) * limits.round_to
    return np.minimum(rounded, sizes)


def reachable_speed_up(
    model: nn.Module,
    groups: list[ChannelGroup],
    limits: Limits,
    imgsz: int = 640,
    cost_fn: CostFn | None = None,
) -> float:
    """The best speed-up that the limits allow, in MACs or in `cost_fn`: every group at
    its floor.
    """
    index = ChannelIndex(model, groups)
    amount: CostFn = cost_fn or Cost(model, index, imgsz).macs
    within = np.arange(index.total) - index.starts[index.group_of]
    keep = np.append(within < floors(index.sizes, limits, index.per_channel)[index.group_of], True)
    return amount(index.all_kept()) / amount(keep)


def keep_masks(
    model: nn.Module,
    groups: list[ChannelGroup],
    criterion: Criterion,
    target: float,
    *,
    limits: Limits | None = None,
    per_layer: bool = False,
    max_steps: int = STEPS,
    imgsz: int = 640,
    on_step: Callable[[Step, Masks], None] | None = None,
    measure: Callable[[Masks], Evidence] | None = None,
    measure_every: int = 0,
    cost_fn: CostFn | None = None,
) -> Plan:
    """Masks that reach `target` times fewer MACs (or less of `cost_fn`) with as few channels
    removed as the ranking allows.

    Channels are ranked over all groups, or within each (`per_layer`: all groups shrink by the same
    share). The last step is bisected and filled up again, so that any channel of it back (one block
    of `round_to`) would miss the target. Ends without having met it after `max_steps`, or where
    every group is at its floor. `measure` gathers what a `GradientCriterion` needs (gradients.py),
    from the whole model and, with `measure_every`, anew from the masked one every so many steps.
    `cost_fn` counts instead of the MACs (latency.py); the channels rank as they do without it.
    """
    shrinking = _Shrinking(
        model, groups, criterion, limits or Limits(), per_layer, imgsz, measure, cost_fn
    )
    whole = shrinking.amount(shrinking.index.all_kept())
    goal = whole / target
    steps: list[Step] = []
    for number in range(1, max_steps + 1):
        if shrinking.amount(shrinking.kept()) <= goal:
            break
        if measure and measure_every and number > 1 and (number - 1) % measure_every == 0:
            shrinking.measure(measure)
        order = shrinking.next_channels(number)
        if not len(order) and not shrinking.room():
            break
        shrinking.remove(order, goal)
        steps.append(shrinking.state(number))
        if on_step:
            on_step(steps[-1], shrinking.index.by_group(shrinking.kept()))
    keep = shrinking.kept()
    cost = shrinking.cost
    reached = whole / cost_fn(keep) if cost_fn else None
    return Plan(
        shrinking.index.by_group(keep), tuple(steps), cost.base, cost.macs(keep), target, reached
    )


class _Shrinking:
    """The masks on their way down.

    `removed_at[c]` says when flat channel c went; STAYS if it did not.
    """

    STAYS = np.iinfo(np.int64).max

    def __init__(
        self,
        model: nn.Module,
        groups: list[ChannelGroup],
        criterion: Criterion,
        limits: Limits,
        per_layer: bool,
        imgsz: int,
        measure: Callable[[Masks], Evidence] | None,
        cost_fn: CostFn | None = None,
    ):
        self.model, self.criterion = model, criterion
        self.index = ChannelIndex(model, groups)
        self.cost = Cost(model, self.index, imgsz)
        self.amount: CostFn = cost_fn or self.cost.macs
        self.round_to, self.per_layer = limits.round_to, per_layer
        self.floors = floors(self.index.sizes, limits, self.index.per_channel)
        self.removed_at = np.full(self.index.total, self.STAYS)
        self.measure(measure)

    def measure(self, measure: Callable[[Masks], Evidence] | None) -> None:
        """What the scores are made from, of the model as masked now."""
        evidence = measure(self.index.by_group(self.marked())) if measure else None
        self.sums = GroupScores(self.model, self.index, self.criterion, evidence)

    def marked(self) -> np.ndarray:
        """The flat mask before rounding."""
        return np.append(self.removed_at == self.STAYS, True)

    def kept(self) -> np.ndarray:
        """The flat mask, widths rounded up to multiples: what went last comes back first."""
        keep = self.marked()
        if self.round_to == 1:
            return keep
        for start, size, left in zip(
            self.index.starts, self.index.sizes, self.index.counts(keep), strict=True
        ):
            width = min(-(-left // self.round_to) * self.round_to, size)
            last_first = np.argsort(-self.removed_at[start : start + size], kind="stable")
            keep[start + last_first[:width]] = True
        return keep

    def room(self) -> bool:
        """Whether any group is above its floor."""
        return bool((self.index.counts(self.marked()) > self.floors).any())

    def next_channels(self, number: int) -> np.ndarray:
        """Flat channels that step `number` removes, in their order.

        Ties go by index, so that the number is exact.
        """
        keep = self.marked()
        left = self.index.counts(keep)
        scores = self.sums.scores(keep)
        rank = self._rank_in_group(scores)
        group = self.index.group_of
        free = rank < (left - self.floors)[group]
        if self.per_layer:
            quota = left - (self.index.sizes * (1 - number / STEPS)).astype(int)
            chosen = np.flatnonzero(free & (rank < quota[group]))
            return chosen[
                np.lexsort((chosen, rank[chosen]))
            ]  # all groups' weakest first, then all second weakest
        quota = left.sum() - int(self.index.total * (1 - number / STEPS))
        chosen = np.flatnonzero(free)
        return chosen[np.argsort(scores[chosen], kind="stable")][: max(quota, 0)]

    def _rank_in_group(self, scores: np.ndarray) -> np.ndarray:
        """0 for the lowest score of each group; those that are gone come last."""
        order = np.lexsort((scores, self.index.group_of))
        rank = np.empty(self.index.total, dtype=int)
        rank[order] = np.arange(self.index.total) - self.index.starts[self.index.group_of]
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
        """Of the channels that went in this step the best return as far as the goal allows: the
        last one may have been costly.
        """
        for channel in order[::-1]:
            before = self.removed_at[channel]
            self.removed_at[channel] = self.STAYS
            if self.amount(self.kept()) > goal:
                self.removed_at[channel] = before

    def state(self, number: int) -> Step:
        """The row of `prune.csv`."""
        keep = self.kept()
        macs = self.cost.macs(keep)
        return Step(
            number, int(keep[:-1].sum()), self.cost.parameters(keep), macs, self.cost.base / macs
        )
