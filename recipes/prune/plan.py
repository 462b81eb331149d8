"""From a ranking to the masks that `prune.py` cuts by: the search for the target, step by step and
on the record.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.loader import DetectionLoader
from models import Model
from prune_methods import ChannelGroup, Criterion, Limits, Masks, Plan, Step, keep_masks
from prune_methods.search.cost import COST_SIZE
from prune_methods.search.latency import TimeModel
from recipes.prune.gradients import measured
from recipes.prune.latency import latency_plan
from recipes.prune.pagcp import pagcp_plan
from recipes.prune.report import write_steps
from utils.errors import UserError
from utils.evaluator import EvalResult
from utils.log import LOGGER
from utils.options.prune import PruneOptions, idle_options

Look = Callable[[Masks, str], EvalResult]
"""(masks, title) -> mAP of the model cut by them and compensated."""


def limits(opt: PruneOptions) -> Limits:
    """The clamps of the options."""
    return Limits(opt.min_channels, opt.max_ratio, opt.round_to)


def find_plan(
    model: Model,
    groups: list[ChannelGroup],
    criterion: Criterion,
    loader: DetectionLoader,
    look: Look,
    opt: PruneOptions,
    folder: Path,
    cost_fn: TimeModel | None = None,
) -> Plan:
    """Masks for the target; a row a step goes to `prune.csv`.

    `loader` gives training batches without augmentation.

    With `cost_fn` the target is in measured time.

    `UserError` where nothing was pruned, a warning where the target was not met.
    """
    maps: dict[Step, EvalResult] = {}  # a search by time goes through most steps several times

    def on_step(step: Step, masks: Masks) -> None:
        if step.step % 20 == 0:
            LOGGER.info(f"step {step.step}: {step.channels} channels, {step.speed_up:.2f}x")
        if opt.val_every and step.step % opt.val_every == 0 and step not in maps:
            maps[step] = look(masks, f"Step {step.step}, {step.speed_up:.2f}x")

    for line in idle_options(opt):
        LOGGER.warning(line)
    LOGGER.info(f"\nPruning with {opt.method} to {opt.speed_up:g}x:")
    if criterion.search:
        plan = pagcp_plan(
            model, groups, criterion, loader, limits(opt), COST_SIZE, on_step, opt, folder
        )
    else:
        search = partial(
            keep_masks,
            model,
            groups,
            criterion,
            limits=limits(opt),
            per_layer=opt.per_layer,
            max_steps=opt.max_steps,
            imgsz=COST_SIZE,
            on_step=on_step,
            measure=measured(model, groups, criterion, loader, opt),
            measure_every=opt.recalib_every,
            cost_fn=cost_fn,
        )
        plan = latency_plan(model, groups, search, opt) if cost_fn else search(opt.speed_up)
    write_steps(plan.steps, maps, folder / "prune.csv")
    if all(mask.all() for mask in plan.masks.values()):
        raise UserError(
            f"nothing was pruned in {len(plan.steps)} steps; see which layers can be cut with"
            " --dry-run"
        )
    if not plan.met:
        LOGGER.warning(
            f"--speed-up {opt.speed_up:g} was not met after {len(plan.steps)} steps; going on with"
            f" {plan.ratio:.2f}x"
        )
    return plan
