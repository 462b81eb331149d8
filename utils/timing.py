"""Timing that can be compared: the candidates take turns, so that a drifting machine hits all of
them alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    work: Mapping[str, Callable[[], object]],
    seconds: float = 10.0,
    min_rounds: int = 3,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Run all of `work` in turn, round after round, until about `seconds` have passed.

    One uncounted round first. `warm`: before every counted run an uncounted one of the same, for
    many networks: on a CPU oneDNN keeps 1024 kernels, so that the twentieth network makes the first
    lose its own, and a turn would pay for making them again (31 models of 60 convolutions: up to
    1.5 times the time).

    Returns the seconds of every counted run by name, `min_rounds` of each at the least. On a GPU
    the clock is read after the device has finished.
    """
    sync = _synchronizer(torch.device(device))
    times: dict[str, list[float]] = {name: [] for name in work}
    end = 0.0
    for number in range(10_000):
        for name, run in work.items():
            if warm:
                run()
            sync()
            start = clock()
            run()
            sync()
            if number:
                times[name].append(clock() - start)
        if number == 0:
            end = clock() + seconds
        elif number >= min_rounds and clock() >= end:
            break
    return times


def median_ms(times: list[float]) -> float:
    """Median of seconds, in milliseconds."""
    return statistics.median(times) * 1000


def ratio_line(name: str, ratios: list[float]) -> str:
    """`name: 0.93 (median of 12; 0.90 to 0.97)` for ratios measured pair by pair."""
    return (
        f"{name}: {statistics.median(ratios):.3g} (median of {len(ratios)}; {min(ratios):.3g} to"
        f" {max(ratios):.3g})"
    )


def _synchronizer(device: torch.device) -> Callable[[], object]:
    accelerator = device.type not in {"cpu", "meta"}
    return (lambda: torch.accelerator.synchronize(device)) if accelerator else (lambda: None)
