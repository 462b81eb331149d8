"""Time, not MACs: what base and pruned model take side by side, and the search for masks that meet
a target in time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from models import Model
from prune_methods import PRUNERS, ChannelGroup, Limits, Plan, apply, reachable_speed_up
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.search.latency import (
    LayerClock,
    TimeModel,
    deployed_layers,
    fit_time_model,
    narrowed,
)
from prune_methods.search.loop import floors
from recipes.report import forward_of
from utils.comparison import slow_note
from utils.engine.device import device_name
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.prune import PruneOptions
from utils.timing import alternate, median_ms

COPIES = 12  # narrowed models that the time model is fitted to: three for each of its four terms
LEAST_ROUNDS = 5
CUTS = 5  # measured ones at most; each costs --latency-seconds
NOISY = 0.15  # a ratio less certain than this share of it says little
OVERSHOOT = 0.02  # a cut this much quicker than asked for needs no correction
LARGEST_BATCH = 32
CPU_MACS = 16e9  # of one forward pass that a CPU is given at most: about a second on one core


@dataclass(frozen=True)
class LatencySetup:
    """What time is measured on. Precision is float32."""

    device: torch.device
    batch: int
    imgsz: int
    seconds: float

    def __str__(self) -> str:
        """For log and report."""
        cpu = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"batch {self.batch} at {self.imgsz} px, {device_name(self.device)}, fp32{cpu}"


@dataclass(frozen=True)
class Timing:
    """Base and pruned model run in turn: medians in ms a batch, base / pruned, and two standard
    errors of that ratio.
    """

    base_ms: float
    pruned_ms: float
    ratio: float
    error: float
    rounds: int

    def __str__(self) -> str:
        """One line without the setting."""
        text = (
            f"{self.base_ms:.1f} -> {self.pruned_ms:.1f} ms, {self.ratio:.2f}x ± {self.error:.2f}"
            f" (median of {self.rounds})"
        )
        return text + (", on a machine too busy to tell" if self.error > NOISY * self.ratio else "")


def latency_setup(model: Model, opt: PruneOptions) -> LatencySetup:
    """Device, batch and image size of a run; `--latency-batch 0`: 32, on a CPU the largest power of
    two within `CPU_MACS`.
    """
    device, batch = next(model.parameters()).device, opt.latency_batch
    if not batch and device.type == "cpu":
        affordable = max(int(CPU_MACS / model.info(opt.imgsz)["macs"]), 1)
        batch = min(1 << (affordable.bit_length() - 1), LARGEST_BATCH)
    return LatencySetup(device, batch or LARGEST_BATCH, opt.imgsz, opt.latency_seconds)


def compare(
    base: Model,
    pruned: Model,
    setting: LatencySetup,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Both models deployed and run in turn."""
    work = {
        name: forward_of(
            model.fuse(), setting.imgsz, setting.batch, half=False, device=setting.device
        )
        for name, model in (("base", base), ("pruned", pruned))
    }
    times = alternate(work, setting.seconds, LEAST_ROUNDS, setting.device, clock)
    return timing_of(times["base"], times["pruned"])


def timing_of(base: Sequence[float], pruned: Sequence[float]) -> Timing:
    """Figures of seconds measured in pairs.

    The error of a median is 1.25 sigma / sqrt(n), sigma 1.48 median deviations.
    """
    ratios = np.array(base) / np.array(pruned)
    ratio = float(np.median(ratios))
    sigma = 1.4826 * float(np.median(np.abs(ratios - ratio)))
    error = 2 * 1.2533 * sigma / len(ratios) ** 0.5
    return Timing(median_ms(list(base)), median_ms(list(pruned)), ratio, error, len(ratios))


def both_ratios(model: Model, smaller: Model, opt: PruneOptions) -> list[str]:
    """Lines for log and report: MACs and time of base against pruned, and a warning where few of
    the MACs became time.
    """
    if not opt.latency_seconds:
        return []
    setting = latency_setup(model, opt)
    timing, speed_up = (
        compare(model, smaller, setting),
        model.info(opt.imgsz)["macs"] / smaller.info(opt.imgsz)["macs"],
    )
    line = (
        f"{speed_up:.2f}x fewer MACs, measured time {timing}; deployed models in turn, {setting}."
    )
    LOGGER.info(line)
    note = slow_note("The pruned model", speed_up, timing.ratio)
    if note:
        LOGGER.warning(note)
    return [line, f"**Note**: {note}"] if note else [line]


def time_model(
    model: Model,
    groups: list[ChannelGroup],
    limits: Limits,
    setting: LatencySetup,
    clock: Callable[[], float] = time.perf_counter,
) -> TimeModel:
    """Measure the layers of the model and of randomly narrowed copies in turn, and fit_time_model
    the times of all widths to them.
    """
    index = ChannelIndex(model, groups)
    cost, everything = Cost(model, index), index.all_kept()
    lowest, generator = floors(index.sizes, limits, index.per_channel), np.random.default_rng(0)
    keeps = [
        everything,
        *(narrowed(index, lowest, limits.round_to, generator) for _ in range(COPIES)),
    ]
    samples: dict[str, list[np.ndarray]] = {str(n): [] for n in range(len(keeps))}
    images = torch.rand(setting.batch, 3, setting.imgsz, setting.imgsz, device=setting.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def work(number: int, keep: np.ndarray) -> Callable[[], None]:
        deployed = cast(Model, apply(model, groups, index.by_group(keep))).fuse()
        layers = LayerClock(deployed, deployed_layers(cost, deployed), setting.device, clock)
        return lambda: samples[str(number)].append(_run(layers, images))

    LOGGER.info(
        f"Timing {len(cost.layers)} layers in {len(keeps)} models of different widths: {setting}"
    )
    runs = {str(n): work(n, keep) for n, keep in enumerate(keeps)}
    alternate(
        runs, setting.seconds, LEAST_ROUNDS, setting.device, clock, warm=True
    )  # both runs leave a sample
    seconds = np.stack(
        [np.min(samples[name][1:], axis=0) for name in runs]
    )  # noise only adds; the first round warms up
    found = fit_time_model(cost, everything, keeps, seconds)
    errors = [abs(found(keep) / own.sum() - 1) for keep, own in zip(keeps, seconds, strict=True)]
    LOGGER.info(
        f"Time model: within {np.median(errors):.1%} of what it was fitted to (median), at most"
        f" {max(errors):.1%}"
    )
    return found


@torch.inference_mode()
def _run(layers: LayerClock, images: Tensor) -> np.ndarray:
    return layers.run(images)


def cost_fn_of(
    model: Model, groups: list[ChannelGroup], limits: Limits, opt: PruneOptions
) -> TimeModel | None:
    """The measured cost_fn of channels for `--target latency`, None for MACs.

    `UserError` where not even the narrowest model that the limits allow is predicted to be quick
    enough.
    """
    if opt.target == "macs":
        return None
    if not opt.latency_seconds:
        raise UserError(
            "--target latency: needs time to measure; --latency-seconds 2 would be right"
        )
    if PRUNERS[opt.method].search:
        raise UserError(
            f"--target latency: --method {opt.method} searches by MACs; another method, or --target"
            " macs, would be right"
        )
    cost_fn = time_model(model, groups, limits, latency_setup(model, opt))
    best = reachable_speed_up(model, groups, limits, cost_fn=cost_fn)
    LOGGER.info(f"Reachable within the limits: about {best:.2f}x less time")
    if best < opt.speed_up and not opt.allow_less:
        raise UserError(
            f"--target latency --speed-up {opt.speed_up:g}: cannot be reached, the limits allow"
            f" about {best:.2f}x at most; ask for less, loosen --min-channels, --max-ratio or"
            " --ignore, or go as far as possible with --allow-less"
        )
    return cost_fn


def latency_plan(
    model: Model, groups: list[ChannelGroup], search: Callable[[float], Plan], opt: PruneOptions
) -> Plan:
    """Masks that meet `--speed-up` in measured time; `search` is `keep_masks` with a cost_fn and
    without its target.
    """
    setting = latency_setup(model, opt)

    def measure(plan: Plan) -> Timing:
        return compare(model, cast(Model, apply(model, groups, plan.masks)), setting)

    return close_the_loop(search, measure, opt.speed_up)


def close_the_loop(
    search: Callable[[float], Plan], measure: Callable[[Plan], Timing], target: float
) -> Plan:
    """The plan whose measured time meets `target` with the fewest MACs removed; the quickest where
    none does.

    `search(goal)` gives a plan for a goal of the time model, `measure(plan)` what it really brings.
    """
    goal = target
    tried: list[Plan] = []
    pairs: list[tuple[float, float]] = []  # predicted, measured
    for number in range(1, CUTS + 1):
        plan = search(goal)
        assert plan.reached is not None, "a search by time"
        timing = measure(plan)
        LOGGER.info(
            f"cut {number}: predicted {plan.reached:.2f}x, measured {timing}; {plan.speed_up:.2f}x"
            " fewer MACs"
        )
        tried.append(
            replace(
                plan, target=target, reached=timing.ratio, tolerance=timing.error / timing.ratio
            )
        )
        enough = target * (1 + max(OVERSHOOT, tried[-1].tolerance))
        if (tried[-1].met and timing.ratio <= enough) or (not plan.met and not tried[-1].met):
            break
        pairs.append((plan.reached, timing.ratio))
        goal = next_goal(pairs, target * (1 + OVERSHOOT / 2))
    met = [plan for plan in tried if plan.met]
    return min(met, key=lambda p: p.speed_up) if met else max(tried, key=lambda p: p.reached or 0)


def next_goal(pairs: Sequence[tuple[float, float]], aim: float) -> float:
    """Speed-up to predict so that `aim` is measured, from what was predicted and measured so far,
    the last pair last.

    Where pairs lie on both sides of `aim`, it is between those that are nearest to each other, so
    that noise cannot lead further away than what was tried; until then what the last one lacked is
    made up for in proportion.
    """
    slow, quick = (
        [pair for pair in pairs if pair[1] < aim],
        [pair for pair in pairs if pair[1] >= aim],
    )
    if slow and quick:
        (low, below), (high, above) = max(slow), min(quick)
        return low + (high - low) * (aim - below) / (above - below)
    predicted, measured = pairs[-1]
    return max(predicted * aim / measured, 1.001)
