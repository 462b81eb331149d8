"""Schedules for the weight of the distillation term over a run.

The teacher helps most at the start of a run; towards the end the labels should dominate. The cosine
schedule is that of YOLOv6 (Li et al., 2023).
"""

import math

from utils.registry import Registry

KD_SCHEDULES = Registry("distillation schedule")


@KD_SCHEDULES.register("constant")
def constant(progress: float) -> float:
    """Return 1 at any progress."""
    return 1.0


@KD_SCHEDULES.register("linear")
def linear(progress: float) -> float:
    """Return the value of a straight line from 1 (progress 0) to 0 (progress 1)."""
    return 1 - progress


@KD_SCHEDULES.register("cosine")
def cosine(progress: float) -> float:
    """Return the value of half a cosine from 1 to 0: slow at both ends."""
    return (1 + math.cos(math.pi * progress)) / 2


def kd_weight(
    schedule: str,
    step: float,
    steps: float,
    *,
    floor: float = 0.01,
    stop: float = 1.0,
    warmup: float = 0.0,
) -> float:
    """Return the factor of the distillation term at a step, 0..1; a pure function.

    The factor falls from 1 to `floor` with step / steps and never rises, except during the warm-up.

    Args:
        schedule: Name in `KD_SCHEDULES`.
        step: Number of the step, counted over the whole run.
        steps: Number of steps of the whole run.
        floor: Factor at the end of the run, 0..1.
        stop: Share of the run, 0..1, after which the factor is 0.
        warmup: Steps over which the factor is multiplied by a ramp from 0 to 1, while adapters are
            untrained.

    Raises:
        UserError: For an unknown schedule.
    """
    progress = step / steps
    if stop < 1 and progress >= stop:
        return 0.0
    ramp = min(step / warmup, 1.0) if warmup else 1.0
    return ramp * (floor + (1 - floor) * KD_SCHEDULES[schedule](progress))
