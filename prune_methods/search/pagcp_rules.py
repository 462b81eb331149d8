"""The rules of PAGCP (Ye et al., TPAMI 2023, arXiv 2303.11923): tolerances, ratios, which cuts
stay; see pagcp_search.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prune_methods.criteria.base import Array

T = TypeVar("T")
TRIED = range(1, 20)  # ratios in twentieths: .05, .10, ... .95
COARSE = 4  # every fourth ratio is tried first


@dataclass(frozen=True)
class PagcpSettings:
    """How much the losses may rise: a unit's share of it, the whole of a round, and what of it is
    kept.

    The i-th cut unit (from 0) may raise a task's loss by `initial_rate` * lambda^i of what it was;
    with `schedule` lambda is such that all units together could raise it `initial_thres` times,
    without it lambda is 1. `topk`: share of the cut units that stay cut. `rounds`: most rounds,
    each with tolerances that begin anew.
    """

    initial_rate: float = 0.05
    initial_thres: float = 5.0
    topk: float = 1.0
    schedule: bool = True
    rounds: int = 3


@dataclass(frozen=True)
class Cut:
    """A unit's accepted cut: its flat channels that go, weakest first, the losses after it, and its
    price: loss per MAC saved.
    """

    unit: int
    removed: Array
    losses: Array
    price: float


def decay(rate: float, threshold: float, units: int) -> float:
    """Lambda with prod_{i < units} (1 + rate * lambda^i) = threshold; 1 for a single unit, which
    has nothing to decay.

    The logarithm of the product grows with lambda, so the root is bracketed, then bisected.
    """
    assert rate > 0 and 1 + rate < threshold, "the first unit alone would use up the threshold"
    if units < 2:
        return 1.0

    def beyond(exponent: float) -> bool:
        return sum(
            math.log1p(rate * math.exp(min(i * exponent, 700.0))) for i in range(units)
        ) > math.log(threshold)

    low, high = -1.0, 1.0
    while beyond(low):
        low *= 2
    while not beyond(high):
        high *= 2
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return math.exp(low)


def width_after(now: int, twentieths: int, floor: int, round_to: int = 1) -> int:
    """What is left of `now` channels after that share of them went: a multiple of `round_to`, not
    below `floor`.
    """
    left = now - now * twentieths // 20
    return min(now, max(-(-left // round_to) * round_to, floor))


def widths_to_try(now: int, floor: int, round_to: int = 1) -> list[int]:
    """The different widths that the ratios lead to, widest first."""
    found = {width_after(now, ratio, floor, round_to) for ratio in TRIED} - {now}
    return sorted(found, reverse=True)


def last_accepted(attempt: Callable[[int], T | None], number: int) -> T | None:
    """What `attempt(place)` gives at the last place of 0 .. number - 1 before the first None; None
    where the first one is.

    Every fourth place is tried until one fails, then the places before that are bisected: this
    takes it that nothing is accepted beyond a place that is not, as losses rise with what is
    removed.
    """
    best, low, high = None, -1, number
    for place in [*range(COARSE - 1, number - 1, COARSE), *([number - 1] if number else [])]:
        found = attempt(place)
        if found is None:
            high = place
            break
        best, low = found, place
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best


def cheapest(cuts: Sequence[Cut], topk: float) -> list[Cut]:
    """The `topk` share of the cuts (rounded up) that raise the loss least for what they save, in
    the order of the search.
    """
    number = math.ceil(topk * len(cuts) - 1e-9)
    chosen = sorted(range(len(cuts)), key=lambda place: cuts[place].price)[:number]
    return [cuts[place] for place in sorted(chosen)]
