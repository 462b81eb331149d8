"""`train_sparse.py`: `train` with a penalty that drives channels towards zero.

Hooks add the penalty and record its effect.
"""

from collections.abc import Sequence
from functools import partial

from models.checkpoint import save_checkpoint
from prune_methods import Prunable
from prune_methods.groups.graph import ignored_layers
from prune_methods.sparsity.bn_stats import BNStatsLogger, SparsestCheckpoints
from prune_methods.sparsity.hook import Sparsity
from prune_methods.sparsity.penalties import make_penalty
from prune_methods.surgery.recalibrate import FreshStatistics
from recipes.distill import diagnostics, task_for
from recipes.session import TrainingRun
from recipes.train import FitResult, train
from utils.engine.hooks import Hook
from utils.log import LOGGER
from utils.options.base import changed_options, recorded, to_dict
from utils.options.sparse import SparseOptions


def train_sparse(opt: SparseOptions) -> FitResult:
    """Run train_sparse.py: from new weights, from a checkpoint, or from an interrupted run."""
    return train(opt, sparse_hooks, task_for)


def sparse_hooks(run: TrainingRun) -> Sequence[Hook]:
    """Return the hooks of a sparse training for `recipes.train.fit`; `run.opt` are `SparseOptions`.

    Make them before the optimizer: `Sparsity` decides which layers have weight decay.
    """
    model, opt = run.model, run.opt
    assert isinstance(opt, SparseOptions)
    warn_of_idle_options(opt)
    prunable = Prunable.of(model, opt.ignore)
    ignored = ignored_layers(model, opt.ignore)
    penalty = make_penalty(opt.method, prunable.index, ignored, to_dict(opt))
    sparsity = Sparsity(model, penalty, opt.strength, decay=opt.decay, end_factor=opt.end_factor)
    statistics = BNStatsLogger(
        sparsity, run.run_dir, hist_every=opt.hist_every, pictures=not opt.noplots
    )
    save = partial(save_checkpoint, hyp=run.hyp.to_dict(), args=recorded(opt))
    sparsest = [] if opt.nosave else [SparsestCheckpoints(sparsity, run.run_dir / "weights", save)]
    return [sparsity, FreshStatistics(), statistics, *sparsest, *diagnostics(run)]


def warn_of_idle_options(opt: SparseOptions) -> None:
    """Warn of options that were given and that the method, or `--reg auto`, does not read."""
    given = changed_options(opt)
    growth = [name for name in given if name in ("--delta-reg", "--delta-every")]
    if opt.method != "group_reg":
        if growth:
            LOGGER.warning(
                f"{', '.join(growth)}: no effect on {opt.method}, only group_reg's penalty grows"
            )
        return
    if opt.reg_decay or opt.reg_end_factor is not None:
        LOGGER.warning(
            "--reg-decay and --reg-end-factor have no effect on group_reg: its penalty only grows,"
            " by --delta-reg"
        )
    if opt.strength is None and "--delta-reg" in growth:
        LOGGER.warning(
            "--delta-reg: no effect with --reg auto, which finds it; with a number for --reg it is"
            " used"
        )
