"""From masks to the smaller model: cut, compensate, validate each step."""

from collections.abc import Callable
from typing import cast

from models import Model, save_model
from prune_methods import Masks, Plan, Prunable
from prune_methods.surgery.recalibrate import recalibrate_bn
from recipes.prune.context import PruneRun
from recipes.prune.report import write_channels
from utils.evaluator import EvalResult
from utils.log import LOGGER
from utils.options.base import recorded

AfterStep = Callable[[str, Model], None]
"""Called with the name of a compensation and the model after it."""


def cut_and_compensate(run: PruneRun, prunable: Prunable, plan: Plan) -> Model:
    """Return the smaller model, verified and saved as `pruned.pt`.

    The model is validated as cut and after each compensation, a row each.
    """
    model, smaller = cast(Model, prunable.model), cast(Model, prunable.prune(plan))
    LOGGER.info(f"Cut to {plan.speed_up:.3f}x in {len(plan.steps)} steps; {smaller.summary()}")
    write_channels(model, smaller, run.folder, picture=not run.opt.noplots)
    run.add_row("after the cut", smaller)
    compensate(run, prunable, plan.masks, smaller, run.add_row)
    smaller.names = model.names
    save_model(smaller, run.folder / "weights" / "pruned.pt", args=recorded(run.opt))
    return smaller


def compensate(
    run: PruneRun,
    prunable: Prunable,
    masks: Masks,
    smaller: Model,
    after: AfterStep | None = None,
) -> None:
    """Make up for removed channels, in place and as far as the options ask for.

    Args:
        run: the run.
        prunable: the uncut model and its channels.
        masks: channels that were kept.
        smaller: the cut model.
        after: called after each compensation that changed the model.
    """
    if fold(run, prunable, masks, smaller) and after:
        after("after folding constants", smaller)
    batches = run.opt.recalibrate_batches
    if recalibrate_bn(smaller, run.plain_loader, batches) and after:
        after("after BN recalibration", smaller)


def fold(run: PruneRun, prunable: Prunable, masks: Masks, smaller: Model) -> int:
    """Fold the constants of removed channels; return the number of reads that were folded."""
    if not run.opt.fold_constants:
        return 0
    result = prunable.fold_constants(masks, smaller)
    LOGGER.info(
        f"{result.folded} reads of removed channels folded as constants, {result.left} are not"
        " constant"
    )
    return result.folded


def validate_masks(run: PruneRun, prunable: Prunable, masks: Masks, title: str) -> EvalResult:
    """Validate a model cut by these masks and compensated, on the way to the target."""
    smaller = cast(Model, prunable.cut(masks))
    compensate(run, prunable, masks, smaller)
    return run.validate(smaller, title)
