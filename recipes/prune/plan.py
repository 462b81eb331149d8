"""From a ranking to the masks that `prune.py` cuts by: the search, step by step and on
the record.
"""

from functools import partial

from prune_methods import Criterion, Masks, Pace, Plan, Prunable, Step, Target
from prune_methods.search.latency import TimeModel
from recipes.prune.compensation import Compensator
from recipes.prune.context import PruneRun
from recipes.prune.gradients import evidence_source
from recipes.prune.latency import freed_by, latency_plan
from recipes.prune.pagcp import pagcp_plan
from recipes.prune.report import write_steps
from recipes.prune.stages import validate_masks
from utils.errors import UserError
from utils.evaluator import EvalResult
from utils.log import LOGGER
from utils.options.prune import idle_options

LOG_EVERY = 20  # steps


class StepRecord:
    """Logs the steps of a search and validates some; a search by time repeats most steps."""

    def __init__(self, run: PruneRun, prunable: Prunable, compensate: Compensator):
        self.run, self.prunable, self.compensate = run, prunable, compensate
        self.results: dict[Step, EvalResult] = {}

    def __call__(self, step: Step, masks: Masks) -> None:
        """Log every 20th step, validate as `--val-every` asks."""
        if step.step % LOG_EVERY == 0:
            LOGGER.info(f"step {step.step}: {step.channels} channels, {step.speed_up:.2f}x")
        every = self.run.opt.val_every
        if every and step.step % every == 0 and step not in self.results:
            title = f"Step {step.step}, {step.speed_up:.2f}x"
            how = self.compensate
            self.results[step] = validate_masks(self.run, self.prunable, how, masks, title)


def find_plan(
    run: PruneRun,
    prunable: Prunable,
    criterion: Criterion,
    compensate: Compensator,
    cost_fn: TimeModel | None = None,
) -> Plan:
    """Find masks for the target of the run; a row a step goes to `prune.csv`.

    Args:
        run: the run.
        prunable: the model and its channels.
        criterion: the pruning method.
        compensate: how models on the way are compensated before they are validated.
        cost_fn: measured time by mask, where the target is in time.

    Returns:
        The plan. A target that was not met is a warning.

    Raises:
        UserError: where nothing was pruned.
    """
    opt = run.opt
    for line in idle_options(opt):
        LOGGER.warning(line)
    LOGGER.info(f"\nPruning with {opt.method} to {opt.speed_up:g}x:")
    record = StepRecord(run, prunable, compensate)
    plan = _search(run, prunable, criterion, cost_fn, record)
    write_steps(plan.steps, record.results, run.folder / "prune.csv")
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


def _search(
    run: PruneRun,
    prunable: Prunable,
    criterion: Criterion,
    cost_fn: TimeModel | None,
    record: StepRecord,
) -> Plan:
    """Search as the method asks: by losses (PAGCP), by measured time, or by MACs."""
    if criterion.search:
        return pagcp_plan(run, prunable, criterion, record)
    search = partial(
        prunable.search,
        criterion,
        limits=run.limits,
        pace=Pace(
            run.opt.max_steps,
            run.opt.per_layer,
            freed_by(run.opt, prunable, criterion, cost_fn),
        ),
        source=evidence_source(run, prunable, criterion),
        on_step=record,
    )
    if cost_fn is None:
        return search(Target(run.opt.speed_up))
    return latency_plan(prunable, lambda goal: search(Target(goal, cost_fn)), run.opt)
