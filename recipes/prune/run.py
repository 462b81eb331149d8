"""`prune.py`: what can be cut -> masks for the target -> one cut -> recalibrate -> validate ->
finetune -> report.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from data.config import DataConfig, load_data
from models import Model, load_model
from prune_methods import (
    PRUNERS,
    ChannelGroup,
    Criterion,
    Skipped,
    countable,
    reachable_speed_up,
    run_preflight,
)
from prune_methods.search.cost import COST_SIZE
from prune_methods.search.latency import TimeModel
from recipes.distill import check_teacher
from recipes.prepare import class_names
from recipes.prune.gradients import warn_if_dense
from recipes.prune.latency import both_ratios, cost_fn_of
from recipes.prune.plan import find_plan, limits
from recipes.prune.preflight_report import layer_fates, short_form, table, totals, write_preflight
from recipes.prune.report import REPORT_JSON, Report
from recipes.prune.stages import Stages
from recipes.prune.training import finetune, forget_earlier, interrupted_run, sparse_train
from utils.engine import dist
from utils.engine.device import select_device
from utils.engine.run_hooks import GracefulStop
from utils.engine.seed import seed_everything
from utils.errors import UserError
from utils.images import whole_strides
from utils.log import LOGGER, logging_to
from utils.options.prune import PruneOptions
from utils.rundir import environment, make_run_dir, save_options

FINETUNED = "after finetune"
DRY_RUN = "dry-run"  # the folder of its files


def prune(opt: PruneOptions) -> Path | None:
    """The whole run; gives the path of the best checkpoint, None for a dry run."""
    if dist.world_from_env().size > 1:
        raise UserError(
            "prune.py is one process; cut with --no-finetune, then: torchrun --nproc-per-node 2"
            " train.py --weights runs/prune/exp/weights/pruned.pt --hyp finetune"
        )
    folder = None
    if opt.resume:
        opt, folder = interrupted_run(opt)
        if (folder / REPORT_JSON).is_file():
            return go_on_after_cut(opt, folder)
    opt.check()
    criterion = PRUNERS[opt.method](seed=opt.seed)
    seed_everything(opt.seed)
    model = load_model(opt.weights, select_device(opt.device))
    groups, skipped = run_preflight(model, opt.ignore, opt.graph_time_limit, progress=True)
    groups, without = countable(groups, criterion)
    skipped += without
    if opt.dry_run:
        LOGGER.info(f"{table(layer_fates(model, groups, skipped))}\n{totals(groups, skipped)}")
        LOGGER.info(f"Reachable speed-up within the limits: {reachable(model, groups, opt):.2f}x")
        folder = make_run_dir(opt.project, DRY_RUN, exist_ok=True)  # takes no run's number
        write_preflight(layer_fates(model, groups, skipped), skipped, folder)
        LOGGER.info(f"preflight.csv and skipped.csv are in {folder}")
        return None
    check_reachable(model, groups, opt)
    if criterion.sparse and not opt.sparse_epochs:
        warn_if_dense(model, opt)
    stride = int(model.stride.max())
    opt = replace(opt, imgsz=whole_strides(opt.imgsz or model.imgsz, stride))
    data = matching_data(model, opt)
    check_teacher(model, opt)
    cost_fn = cost_fn_of(model, groups, limits(opt), opt)
    if folder is None:
        folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
        forget_earlier(folder)
    with logging_to(folder / "log.txt"), stoppable(folder):
        return run(model, groups, skipped, criterion, data, opt, folder, cost_fn)


def run(
    model: Model,
    groups: list[ChannelGroup],
    skipped: list[Skipped],
    criterion: Criterion,
    data: DataConfig,
    opt: PruneOptions,
    folder: Path,
    cost_fn: TimeModel | None = None,
) -> Path:
    """Everything after the preflight, into the run folder."""
    save_options(
        opt,
        folder / "opt.yaml",
        **environment(next(model.parameters()).device),
        data_hash=data.hash,
    )
    write_preflight(layer_fates(model, groups, skipped), skipped, folder)
    LOGGER.info(model.summary())
    LOGGER.info(short_form(groups, skipped))
    stage = Stages(data, opt, folder, int(model.stride.max()))
    stage.add("base", model)
    if opt.sparse_epochs:
        model = sparse_train(model, data, opt, folder)
        stage.add("after sparse training", model)
    look = partial(stage.as_pruned, model, groups)
    plan = find_plan(model, groups, criterion, stage.plain_loader, look, opt, folder, cost_fn)
    smaller = stage.cut(model, groups, plan)
    stage.report.conclude(plan)
    stage.report.remarks += both_ratios(model, smaller, opt)
    stage.report.write(folder)
    return finish(smaller, data, stage, opt, folder)


def go_on_after_cut(opt: PruneOptions, folder: Path) -> Path:
    """What an interrupted run still lacks once the cut is on disk: the finetune, and its row."""
    with logging_to(folder / "log.txt"), stoppable(folder):
        device = select_device(opt.device)
        smaller = load_model(folder / "weights" / "pruned.pt", device)
        data = matching_data(smaller, opt)
        stage = Stages(data, opt, folder, int(smaller.stride.max()))
        stage.report = Report.read(folder)
        return finish(smaller, data, stage, opt, folder)


def stoppable(folder: Path) -> GracefulStop:
    """Whatever the run is doing: an interrupt ends it with a line that says how to go on."""
    return GracefulStop(lambda: f"go on with: python prune.py --resume {folder}")


def finish(
    smaller: Model, data: DataConfig, stage: Stages, opt: PruneOptions, folder: Path
) -> Path:
    """Finetune if asked for, and report."""
    best = folder / "weights" / "pruned.pt"
    if opt.finetune:
        found = finetune(smaller, data, opt, folder)
        best, model = (
            folder / "weights" / "best.pt",
            load_model(found.best, next(smaller.parameters()).device),
        )
        model.names = smaller.names
        stage.report.rows = [row for row in stage.report.rows if row.stage != FINETUNED]
        stage.report.add(FINETUNED, model, found.result or stage.validate(model, "After finetune"))
        stage.report.write(folder)
    elif (folder / "finetune").exists():
        LOGGER.warning(
            f"{folder / 'finetune'} is of an earlier run of this name, it has nothing to do with"
            " this cut"
        )
    LOGGER.info("\n" + stage.report.markdown())
    LOGGER.info(f"Results saved to {folder}; the model is {best}")
    return best


def reachable(model: Model, groups: list[ChannelGroup], opt: PruneOptions) -> float:
    """The best speed-up within the clamps."""
    return reachable_speed_up(model, groups, limits(opt), COST_SIZE) if groups else 1.0


def check_reachable(model: Model, groups: list[ChannelGroup], opt: PruneOptions) -> None:
    """`UserError` where it is known beforehand that the target in MACs cannot be met, or that
    nothing can be cut.
    """
    best = reachable(model, groups, opt)
    if best <= 1:
        raise UserError(
            f"{opt.weights}: nothing can be pruned within these limits; see which layers and why"
            " with --dry-run"
        )
    if opt.target == "macs" and best < opt.speed_up and not opt.allow_less:
        raise UserError(
            f"--speed-up {opt.speed_up:g}: cannot be reached, the limits allow {best:.2f}x at most;"
            " ask for less, loosen --min-channels, --max-ratio or --ignore, or go as far as"
            " possible with --allow-less"
        )


def matching_data(model: Model, opt: PruneOptions) -> DataConfig:
    """The data, which must have the model's classes."""
    data = load_data(opt.data)
    names = class_names(data.names, opt.single_cls)
    if len(names) != model.nc:
        raise UserError(
            f"{opt.weights}: has {model.nc} classes, {opt.data} has {len(names)}; prune with the"
            " data that it was trained on, or train it on these first: python train.py --weights"
            f" {opt.weights} --data {opt.data} --hyp finetune"
        )
    model.names = names
    return data
