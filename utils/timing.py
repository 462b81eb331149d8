"""Timing that can be compared.

The candidates take turns, so that a drifting machine hits all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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

    The first round is not counted. On a GPU the clock is read after the device has finished.

    Args:
        work: Functions to time, by name.
        seconds: Time of the counted rounds.
        min_rounds: Least number of counted rounds, whatever the time.
        device: Device that the functions compute on.
        clock: Returns the time in seconds.
        warm: Run a function once uncounted before every counted run. Needed for many networks: on a
            CPU oneDNN keeps 1024 kernels, so that the twentieth network displaces the kernels of
            the first, and a run would pay for making them again (31 models of 60 convolutions: up
            to 1.5 times the time).

    Returns:
        Seconds of every counted run, by name.
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
    """Return the median of times in seconds, in milliseconds."""
    return statistics.median(times) * 1000


def ratio_line(name: str, ratios: list[float]) -> str:
    """Return `name: 0.93 (median of 12; 0.90 to 0.97)` for ratios measured pair by pair."""
    median, low, high = statistics.median(ratios), min(ratios), max(ratios)
    return f"{name}: {median:.3g} (median of {len(ratios)}; {low:.3g} to {high:.3g})"


def _synchronizer(device: torch.device) -> Callable[[], object]:
    """Return the function that waits until the device has finished."""
    if device.type in {"cpu", "meta"}:
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


STAGES = ("pre", "inference", "nms")


class StageClock:
    """Sum up the seconds of each stage.

    A GPU is waited for at both ends of a stage: otherwise only the launch would be timed.
    """

    def __init__(self, device: torch.device, stages: Sequence[str] = STAGES):
        self.seconds = dict.fromkeys(stages, 0.0)
        self.device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def milliseconds(self, images: int) -> dict[str, float]:
        """Return the milliseconds per image of each stage."""
        return {name: seconds / max(images, 1) * 1000 for name, seconds in self.seconds.items()}

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()
