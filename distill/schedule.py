"""How the weight of distillation changes over a run.

The teacher helps most at first; towards the end the labels are to have the last word (the cosine is
YOLOv6's, Li et al. 2023).
"""

import math

from utils.registry import Registry

KD_SCHEDULES = Registry("distillation schedule")


@KD_SCHEDULES.register("constant")
def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


@KD_SCHEDULES.register("linear")
def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1 - progress


@KD_SCHEDULES.register("cosine")
def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0: slow at both ends."""
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
    """Factor of the distillation term at `step` of the whole run's `steps`, 0..1; a pure function.

    It falls from 1 to `floor` (0..1) with step / steps, never back. `stop`: share of the run (0..1)
    after which it is off. `warmup`: steps over which it is let in linearly, while adapters are raw.
    `UserError` for an unknown schedule.
    """
    progress = step / steps
    if stop < 1 and progress >= stop:
        return 0.0
    ramp = min(step / warmup, 1.0) if warmup else 1.0
    return ramp * (floor + (1 - floor) * KD_SCHEDULES[schedule](progress))
