"""Measured time: base and pruned model side by side, and the search for a target in time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from models import Model
from prune_methods import PRUNERS, Criterion, Limits, Plan, Prunable
from prune_methods.search.latency import (
    LayerClock,
    TimeModel,
    deployed_layers,
    fit_time_model,
    narrowed,
)
from prune_methods.search.marginal import (
    marginal_both,
    marginal_bytes,
    marginal_macs,
    marginal_time,
)
from prune_methods.search.plan import FreedBy, floors
from recipes.prune.context import limits_of
from recipes.report import forward_of
from utils.comparison import slow_note
from utils.engine.device import device_name
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.prune import PruneOptions
from utils.timing import alternate, median_ms

COPIES = 12  # narrowed models that the time model is fitted to: three for each of its four terms
LEAST_ROUNDS = 5  # runs of each model, however long they take
CUTS = 5  # cuts that are measured at most; each takes --latency-seconds
NOISY = 0.15  # relative error above which a ratio is reported as too uncertain
OVERSHOOT = 0.02  # a cut that is quicker than the target by at most this share is not corrected
LARGEST_BATCH = 32
CPU_MACS = 16e9  # MACs of a forward pass on a CPU at most: about a second on one core


@dataclass(frozen=True)
class LatencySetup:
    """Conditions of a measurement; precision is float32, `seconds` bounds its length."""

    device: torch.device
    batch: int
    imgsz: int
    seconds: float

    def __str__(self) -> str:
        """Return the conditions for log and report."""
        cpu = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"batch {self.batch} at {self.imgsz} px, {device_name(self.device)}, fp32{cpu}"


@dataclass(frozen=True)
class Timing:
    """Times of base and pruned model run in turn.

    Attributes:
        base_ms, pruned_ms: medians, ms a batch.
        ratio: median of base / pruned.
        error: two standard errors of the ratio.
        rounds: pairs of runs.
    """

    base_ms: float
    pruned_ms: float
    ratio: float
    error: float
    rounds: int

    def __str__(self) -> str:
        """Return the times on one line, without the conditions."""
        text = (
            f"{self.base_ms:.1f} -> {self.pruned_ms:.1f} ms, {self.ratio:.2f}x ± {self.error:.2f}"
            f" (median of {self.rounds})"
        )
        return text + (", on a machine too busy to tell" if self.error > NOISY * self.ratio else "")


def latency_setup(model: Model, opt: PruneOptions) -> LatencySetup:
    """Return device, batch and image size of a run.

    `--latency-batch 0` means 32, on a CPU the largest power of two within `CPU_MACS`.
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
    """Deploy both models, run them in turn and return their times."""

    def forward(model: Model) -> Callable[[], None]:
        return forward_of(model.fuse(), setting.imgsz, setting.batch, False, setting.device)

    work = {"base": forward(base), "pruned": forward(pruned)}
    times = alternate(work, setting.seconds, LEAST_ROUNDS, setting.device, clock)
    return timing_of(times["base"], times["pruned"])


def timing_of(base: Sequence[float], pruned: Sequence[float]) -> Timing:
    """Summarise seconds that were measured in pairs.

    The error of a median is 1.25 sigma / sqrt(n), sigma 1.48 median deviations.
    """
    ratios = np.array(base) / np.array(pruned)
    ratio = float(np.median(ratios))
    sigma = 1.4826 * float(np.median(np.abs(ratios - ratio)))
    error = 2 * 1.2533 * sigma / len(ratios) ** 0.5
    return Timing(median_ms(list(base)), median_ms(list(pruned)), ratio, error, len(ratios))


def both_ratios(model: Model, smaller: Model, opt: PruneOptions) -> list[str]:
    """Return lines for log and report: MACs and measured time of base against pruned model.

    A warning is added where the saving of time falls far behind the saving of MACs. With
    `--latency-seconds 0` nothing is measured, and the list is empty.
    """
    if not opt.latency_seconds:
        return []
    setup = latency_setup(model, opt)
    timing = compare(model, smaller, setup)
    speed_up = model.info(opt.imgsz)["macs"] / smaller.info(opt.imgsz)["macs"]
    line = f"{speed_up:.2f}x fewer MACs, measured time {timing}; deployed models in turn, {setup}."
    LOGGER.info(line)
    note = slow_note("The pruned model", speed_up, timing.ratio)
    if note:
        LOGGER.warning(note)
    return [line, f"**Note**: {note}"] if note else [line]


def time_model(
    prunable: Prunable,
    limits: Limits,
    setup: LatencySetup,
    clock: Callable[[], float] = time.perf_counter,
) -> TimeModel:
    """Measure the layers of the model and of narrowed copies in turn, and fit a model of time.

    Args:
        prunable: the model and its channels.
        limits: bounds of the copies' widths, which are drawn at random.
        setup: device, batch and image size.
        clock: seconds.

    Returns:
        Seconds of one batch by flat mask.
    """
    index, cost = prunable.index, prunable.cost()
    everything = index.all_kept()
    lowest, generator = floors(index.sizes, limits, index.per_channel), np.random.default_rng(0)
    copies = [narrowed(index, lowest, limits.round_to, generator) for _ in range(COPIES)]
    keeps = [everything, *copies]
    samples: dict[str, list[np.ndarray]] = {str(n): [] for n in range(len(keeps))}
    images = torch.rand(setup.batch, 3, setup.imgsz, setup.imgsz, device=setup.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def work(number: int, keep: np.ndarray) -> Callable[[], None]:
        deployed = cast(Model, prunable.cut(index.by_group(keep))).fuse()
        layers = LayerClock(deployed, deployed_layers(cost, deployed), setup.device, clock)
        return lambda: samples[str(number)].append(_run(layers, images))

    LOGGER.info(
        f"Timing {len(cost.layers)} layers in {len(keeps)} models of different widths: {setup}"
    )
    runs = {str(n): work(n, keep) for n, keep in enumerate(keeps)}
    # `warm`: an untimed run precedes each timed one, and both leave a sample.
    alternate(runs, setup.seconds, LEAST_ROUNDS, setup.device, clock, warm=True)
    # The minimum is taken because noise only adds time; the first sample is a warm-up.
    seconds = np.stack([np.min(samples[name][1:], axis=0) for name in runs])
    found = fit_time_model(cost, everything, keeps, seconds)
    errors = [abs(found(keep) / own.sum() - 1) for keep, own in zip(keeps, seconds, strict=True)]
    LOGGER.info(
        f"Time model: within {np.median(errors):.1%} of what it was fitted to (median), at most"
        f" {max(errors):.1%}"
    )
    return found


@torch.inference_mode()
def _run(layers: LayerClock, images: Tensor) -> np.ndarray:
    """Return the seconds of each layer in one forward pass."""
    return layers.run(images)


def cost_fn_of(prunable: Prunable, opt: PruneOptions) -> TimeModel | None:
    """Return the fitted model of time for `--target latency`, None for MACs.

    Raises:
        UserError: where the options exclude each other, or not even the narrowest model within the
            limits is predicted to be quick enough.
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
    limits = limits_of(opt)
    cost_fn = time_model(prunable, limits, latency_setup(cast(Model, prunable.model), opt))
    best = prunable.reachable(limits, cost_fn)
    LOGGER.info(f"Reachable within the limits: about {best:.2f}x less time")
    if best < opt.speed_up and not opt.allow_less:
        raise UserError(
            f"--target latency --speed-up {opt.speed_up:g}: cannot be reached, the limits allow"
            f" about {best:.2f}x at most; ask for less, loosen --min-channels, --max-ratio or"
            " --ignore, or go as far as possible with --allow-less"
        )
    return cost_fn


def freed_by(
    opt: PruneOptions, prunable: Prunable, criterion: Criterion, times: TimeModel | None
) -> FreedBy | None:
    """Return the cost that scores are divided by, as `--per` asks; None for scores as they are.

    Args:
        opt: options of the run.
        prunable: the model and its channels.
        criterion: the pruning method, whose scores decide where `--per` is auto.
        times: the model of time of `--target latency`; without it `--per time` measures one.
    """
    per, cost = opt.per, prunable.cost()
    if per == "auto":
        per = "both" if criterion.loss_units else "none"
    if per == "time":
        setup = latency_setup(cast(Model, prunable.model), opt)
        return marginal_time(times or time_model(prunable, limits_of(opt), setup))
    by_name = {"macs": marginal_macs, "bytes": marginal_bytes, "both": marginal_both}
    return by_name[per](cost) if per in by_name else None


def latency_plan(prunable: Prunable, search: Callable[[float], Plan], opt: PruneOptions) -> Plan:
    """Return a plan that meets `--speed-up` in measured time.

    `search(goal)` returns a plan for a speed-up that the time model predicts.
    """
    model = cast(Model, prunable.model)
    setup = latency_setup(model, opt)

    def measure(plan: Plan) -> Timing:
        return compare(model, cast(Model, prunable.cut(plan.masks)), setup)

    return close_the_loop(search, measure, opt.speed_up)


def close_the_loop(
    search: Callable[[float], Plan], measure: Callable[[Plan], Timing], target: float
) -> Plan:
    """Return the plan that meets `target` in measured time with the fewest MACs removed.

    Cuts are searched for and measured in turn, `CUTS` at most; each measurement corrects the goal
    of the next search. Where no plan meets the target, the quickest is returned.

    Args:
        search: goal -> plan; the goal is a speed-up that the time model predicts.
        measure: plan -> measured times.
        target: speed-up to reach in measured time.
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
        tolerance = timing.error / timing.ratio
        tried.append(replace(plan, target=target, reached=timing.ratio, tolerance=tolerance))
        close = timing.ratio <= target * (1 + max(OVERSHOOT, tolerance))
        met = tried[-1].met
        out_of_reach = not plan.met and not met
        if (met and close) or out_of_reach:
            break
        pairs.append((plan.reached, timing.ratio))
        goal = next_goal(pairs, target * (1 + OVERSHOOT / 2))
    good = [plan for plan in tried if plan.met]
    return min(good, key=lambda p: p.speed_up) if good else max(tried, key=lambda p: p.reached or 0)


def next_goal(pairs: Sequence[tuple[float, float]], aim: float) -> float:
    """Return the speed-up to predict so that `aim` is measured.

    Where measured pairs lie on both sides of `aim`, the goal is interpolated between the nearest
    two, so that noise cannot lead beyond the cuts tried. Until then the last goal is corrected in
    proportion to its error.

    Args:
        pairs: (predicted, measured) speed-ups so far, the last one last.
        aim: the speed-up to measure.
    """
    slow = [pair for pair in pairs if pair[1] < aim]
    quick = [pair for pair in pairs if pair[1] >= aim]
    if slow and quick:
        (low, below), (high, above) = max(slow), min(quick)
        return low + (high - low) * (aim - below) / (above - below)
    predicted, measured = pairs[-1]
    return max(predicted * aim / measured, 1.001)
