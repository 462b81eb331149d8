"""From masks to the smaller model: cut, compensate, validate each step."""

from typing import cast

from models import Model, save_model
from prune_methods import Masks, Plan, Prunable
from recipes.prune.compensation import Compensator
from recipes.prune.context import PruneRun
from recipes.prune.report import write_channels, write_fits
from utils.evaluator import EvalResult
from utils.log import LOGGER
from utils.options.base import recorded


def cut_and_compensate(
    run: PruneRun, prunable: Prunable, compensate: Compensator, plan: Plan
) -> Model:
    """Return the smaller model, verified, compensated and saved as `pruned.pt`.

    The model is validated as cut and after each compensation, a row each.
    """
    model, smaller = cast(Model, prunable.model), cast(Model, prunable.prune(plan))
    smaller.names = model.names
    smaller.ancestors = prunable.lineage(plan.masks, smaller)
    LOGGER.info(f"Cut to {plan.speed_up:.3f}x in {len(plan.steps)} steps; {smaller.summary()}")
    compensate.check_base(run.add_row)
    write_channels(model, smaller, run.folder, picture=not run.opt.noplots)
    found = compensate(plan.masks, smaller, run.add_row)
    write_fits(compensate.fits, run.folder / "reconstruction.csv")
    found = compensate.repaired(plan.masks, found, run.add_row)
    LOGGER.info(f"The model {found.stage} goes on: loss {found.loss:.3f} on held-out images")
    save_model(found.model, run.folder / "weights" / "pruned.pt", args=recorded(run.opt))
    return found.model


def validate_masks(
    run: PruneRun, prunable: Prunable, compensate: Compensator, masks: Masks, title: str
) -> EvalResult:
    """Validate a model cut by these masks and compensated, on the way to the target."""
    smaller = cast(Model, prunable.cut(masks))
    return run.validate(compensate(masks, smaller).model, title)
