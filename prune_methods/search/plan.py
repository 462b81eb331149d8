"""Values that a search for masks takes and gives: target, limits, pace, steps, and the plan."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prune_methods.criteria.scoring import Evidence
from prune_methods.groups.channel_index import ChannelIndex, Masks

COST_SIZE = 640  # pixels at which GFLOPs are stated; a speed-up is the same at any size
STEPS = 200  # equal steps from all channels to none, as in Torch-Pruning's published runs

CostFn = Callable[[np.ndarray], float]
"""Cost of the model that a flat mask leaves, in any unit, e.g. seconds."""

FreedBy = Callable[[np.ndarray], np.ndarray]
"""Flat mask -> cost that the removal of each flat channel would free, float (total,)."""


@dataclass(frozen=True)
class Target:
    """The speed-up to reach: cost of the whole model over cost of the pruned one.

    Attributes:
        speed_up: above 1; 2 halves the cost.
        cost_fn: the cost that counts; MACs of the deployed model where it is None.
        imgsz: pixels at which MACs are stated.
    """

    speed_up: float
    cost_fn: CostFn | None = None
    imgsz: int = COST_SIZE


@dataclass(frozen=True)
class Limits:
    """Bounds of every group, held whatever the step size.

    Attributes:
        min_channels: channels that a layer keeps at least.
        max_ratio: largest share of a group's channels that may go, above 0 and at most 1.
        round_to: cut widths are multiples of it; a group of another width may also stay whole.
    """

    min_channels: int = 4
    max_ratio: float = 1.0
    round_to: int = 1


@dataclass(frozen=True)
class Pace:
    """How a ranking becomes masks, step by step.

    Attributes:
        max_steps: steps after which the search ends; each removes 1 / `STEPS` of all channels.
        per_layer: rank within each group, so that all groups shrink by the same share; otherwise
            rank over all groups together.
        per: cost that each channel frees; scores are divided by it. None: scores count as they are.
    """

    max_steps: int = STEPS
    per_layer: bool = False
    per: FreedBy | None = None


@dataclass(frozen=True)
class EvidenceSource:
    """Where a criterion that looks at data gets its tables from.

    Attributes:
        collect: masks -> tables of the model as masked.
        every: steps after which tables are collected anew; 0 = never.
    """

    collect: Callable[[Masks], Evidence]
    every: int = 0


@dataclass(frozen=True)
class Step:
    """The masked model after a step: parameters of the training form, MACs of the deployed one."""

    step: int
    channels: int
    parameters: int
    macs: int
    speed_up: float


OnStep = Callable[[Step, Masks], None]


@dataclass(frozen=True)
class Plan:
    """Masks, the steps that led to them, and the target.

    Attributes:
        masks: channels to keep, by group.
        steps: a row a step.
        base_macs, macs: MACs of the deployed model before and after.
        target: the speed-up that was asked for.
        reached: the ratio that was reached where the target is not in MACs, else None.
        tolerance: relative uncertainty of `reached`.
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
        """The ratio that the target counts, before over after."""
        return self.speed_up if self.reached is None else self.reached

    @property
    def met(self) -> bool:
        """Whether the ratio is at least the target, within its tolerance."""
        if self.reached is not None:
            return self.reached * (1 + self.tolerance) >= self.target
        return self.base_macs >= self.target * self.macs


def floors(sizes: np.ndarray, limits: Limits, per_channel: np.ndarray | int = 1) -> np.ndarray:
    """Return the number of channels that must stay in each group, int (groups,).

    `sizes` are the channels of each group; a channel stands for `per_channel` of its narrowest
    layer.
    """
    by_ratio = np.ceil(sizes * (1 - limits.max_ratio) - 1e-9).astype(int)
    by_number = -(-limits.min_channels // per_channel)
    lowest = np.maximum(np.maximum(by_ratio, by_number), 1)
    rounded = -(-lowest // limits.round_to) * limits.round_to
    return np.minimum(rounded, sizes)


def keep_first(index: ChannelIndex, widths: np.ndarray) -> np.ndarray:
    """Return the flat mask that keeps the first `widths[g]` channels of each group."""
    return np.append(index.within_group() < widths[index.group_of], True)
