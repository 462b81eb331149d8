"""The rules of PAGCP: tolerances, ratios, and which cuts stay; `pagcp.py` searches by them.

Source: Ye et al., TPAMI 2023, arXiv 2303.11923.
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
    """Bounds on the rise of the losses.

    The i-th cut unit (from 0) may raise the loss of a task by the share `initial_rate` * lambda^i.

    Attributes:
        initial_rate: tolerance of the first unit, above 0.
        initial_thres: factor by which all units of a round together may raise a loss; lambda
            follows from it.
        topk: share of the cut units that stay cut, above 0 and at most 1.
        schedule: False keeps lambda at 1.
        rounds: most rounds; tolerances begin anew in each.
    """

    initial_rate: float = 0.05
    initial_thres: float = 5.0
    topk: float = 1.0
    schedule: bool = True
    rounds: int = 3


@dataclass(frozen=True)
class Cut:
    """An accepted cut of a unit.

    Attributes:
        unit: number of the unit.
        removed: flat channels that go, the weakest first.
        losses: of each task after the cut.
        loss_per_mac: rise of all losses together for each MAC saved.
    """

    unit: int
    removed: Array
    losses: Array
    loss_per_mac: float


def decay(rate: float, threshold: float, units: int) -> float:
    """Return lambda with prod_{i < units} (1 + rate * lambda^i) = threshold; 1 for a single unit.

    The logarithm of the product grows with lambda, so the root is bracketed, then bisected.
    """
    assert rate > 0 and 1 + rate < threshold, "the first unit alone would use up the threshold"
    if units < 2:
        return 1.0

    def beyond(exponent: float) -> bool:
        rises = (rate * math.exp(min(i * exponent, 700.0)) for i in range(units))
        return sum(map(math.log1p, rises)) > math.log(threshold)

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
    """Return the channels left of `now` after `twentieths` / 20 of them went.

    The result is a multiple of `round_to` and not below `floor`.
    """
    left = now - now * twentieths // 20
    return min(now, max(-(-left // round_to) * round_to, floor))


def widths_to_try(now: int, floor: int, round_to: int = 1) -> list[int]:
    """Return the different widths that the ratios lead to, the widest first."""
    found = {width_after(now, ratio, floor, round_to) for ratio in TRIED} - {now}
    return sorted(found, reverse=True)


def last_accepted(attempt: Callable[[int], T | None], number: int) -> T | None:
    """Return the result of `attempt(place)` at the last place before the first None.

    Places are 0 .. number - 1; None where the first place fails. Every fourth place is tried until
    one fails, then the places before are bisected. The search assumes that no place beyond a
    failing one is accepted, since losses rise with the number of removed channels.
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
    """Return the `topk` share of the cuts that raise the loss least per MAC saved.

    The share is rounded up; cuts come in the order of the search.
    """
    number = math.ceil(topk * len(cuts) - 1e-9)
    chosen = sorted(range(len(cuts)), key=lambda place: cuts[place].loss_per_mac)[:number]
    return [cuts[place] for place in sorted(chosen)]
